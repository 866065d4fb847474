"""What comes before latent attention, with the layers' own functions in float64.

T tokens, N heads, D qk_nope_head_dim, C kv_lora_rank, R qk_rope_head_dim.
"""

import torch
from torch import Tensor


def latent_prepare(
    q: Tensor,
    latent: Tensor,
    norm_weight: Tensor,
    eps: float,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor,
    cache: Tensor,
    rotated: Tensor,
    *,
    interleaved: bool = True,
) -> None:
    """Like the kernel: writes `cache`, [slots, C + R], and `rotated`, [T, N, R]."""
    rope_dim = rotated.shape[2]
    rank = latent.shape[1] - rope_dim
    table = cos_sin[positions.long()].double()

    def rotate(x: Tensor) -> Tensor:
        """[T, heads, R]."""
        half = rope_dim // 2
        evens, odds = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
        first, second = x.double()[..., evens], x.double()[..., odds]
        swapped = torch.cat((second, first), dim=-1)
        return torch.cat((first, second), dim=-1) * table[:, None, 0] + swapped * table[:, None, 1]

    x = latent[:, :rank].double()
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * norm_weight.double()
    stored = torch.cat((normed, rotate(latent[:, None, rank:])[:, 0]), dim=-1)
    is_token = slot_mapping >= 0
    cache[slot_mapping[is_token].long()] = stored[is_token].to(cache.dtype)
    rotated.copy_(rotate(q[..., q.shape[2] - rope_dim :]))
