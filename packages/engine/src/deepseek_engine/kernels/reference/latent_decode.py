"""Decode attention over cached latents, row by row, straight from the definition.

B rows, N heads, C value_dim, R qk_rope_head_dim, M blocks a sequence.
"""

import torch
from torch import Tensor


def latent_decode_attention(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    block_size: int,
    scale: float,
    value_dim: int,
    *,
    first_token: int = 0,
) -> Tensor:
    """[B, N, C + R] queries over their rows' latents, [slots, C + R], to [B, N, C]; rows without tokens give zeros."""
    out = torch.zeros(*q.shape[:2], value_dim, dtype=torch.float64, device=q.device)
    for row in range(q.shape[0]):
        tokens = torch.arange(min(first_token, int(context_lens[row])), int(context_lens[row]), device=q.device)
        slots = block_tables[row, tokens // block_size].long() * block_size + tokens % block_size
        latents = cache[slots].double()
        weights = (q[row].double() @ latents.T * scale).softmax(dim=-1)
        out[row] = weights @ latents[:, :value_dim]
    return out.to(q.dtype)
