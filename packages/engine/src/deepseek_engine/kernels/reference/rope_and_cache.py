"""What `kernels/triton/rope_and_cache.py` does, in plain PyTorch and float64.

T tokens, N query heads, K key/value heads, D head_dim.
"""

import torch
from torch import Tensor

from deepseek_engine.kernels.paged_kv import HeadNorms, PagedKV
from deepseek_engine.layers.rotary import rotate

INT8_LARGEST = 127


def rope_and_cache(
    qkv: Tensor,
    kv: PagedKV,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor,
    norms: HeadNorms | None = None,
    rotated_keys: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys, write keys and values to the cache; the arguments are the kernel's.

    Returns:
        [T, N, D], queries.
    """
    heads = qkv.reshape(len(qkv), -1, kv.head_dim)
    num_heads = heads.shape[1] - 2 * kv.num_heads
    q, k, v = heads.double().tensor_split((num_heads, num_heads + kv.num_heads), dim=1)
    if norms is not None:
        q, k = _normed(q, norms.query, norms.eps), _normed(k, norms.key, norms.eps)
    angles = cos_sin[positions.long()].double()
    q, k = rotate(q, angles).to(qkv.dtype), rotate(k, angles).to(qkv.dtype)
    is_token = slot_mapping >= 0
    slots = slot_mapping[is_token].long()
    for new, cached, scales in ((k, kv.keys, kv.key_scales), (v, kv.values, kv.value_scales)):
        if scales is None:
            cached[slots] = new[is_token].to(cached.dtype)
        else:
            cached[slots], scales[slots] = quantised(new[is_token])
    if rotated_keys is not None:
        rotated_keys[is_token] = k[is_token]
    return q


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., D] to INT8 and [...] float32, the largest magnitude of a head over 127."""
    scales = x.double().abs().amax(dim=-1) / INT8_LARGEST
    return (x.double() / scales.clamp_min(1e-30)[..., None]).round().to(torch.int8), scales.float()


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * weight.double()
