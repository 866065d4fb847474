"""What `kernels/triton/decode_attention.py` does, in plain PyTorch and float64, a row at a time.

B rows, N query heads, K key/value heads, D head_dim, L tokens of a row, M blocks of a row.
"""

from typing import cast

import torch
from torch import Tensor

from deepseek_engine.kernels.paged_kv import HeadNorms, PagedKV
from deepseek_engine.kernels.reference.rope_and_cache import rope_and_cache


def decode_attention(
    qkv: Tensor,
    kv: PagedKV,
    block_tables: Tensor,
    context_lens: Tensor,
    *,
    scale: float,
    cos_sin: Tensor | None,
    norms: HeadNorms | None = None,
) -> Tensor:
    """Attend with one new token a row; the arguments are the kernel's, which takes scratch besides.

    Returns:
        [B, N * D].
    """
    queries = qkv.reshape(len(qkv), -1, kv.head_dim)
    if cos_sin is not None:
        positions = (context_lens - 1).clamp_min(0)
        blocks = block_tables.gather(1, (positions // kv.block_size).long()[:, None])[:, 0]
        slots = torch.where(context_lens > 0, blocks * kv.block_size + positions % kv.block_size, -1)
        queries = rope_and_cache(qkv, kv, positions, slots, cos_sin, norms)
    out = torch.zeros_like(queries)
    for row, context in enumerate(cast("list[int]", context_lens.tolist())):
        if context:
            keys, values = cached_tokens(kv, block_tables[row], context)
            out[row] = attend(queries[row : row + 1], keys, values, scale, None)[0]
    return out.flatten(1)


def cached_tokens(kv: PagedKV, block_table: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """A sequence's keys and values, [L, K, D], float64."""
    tokens = torch.arange(context, device=block_table.device)
    slots = block_table.long()[tokens // kv.block_size] * kv.block_size + tokens % kv.block_size
    keys, values = kv.keys[slots].double(), kv.values[slots].double()
    if kv.key_scales is not None and kv.value_scales is not None:
        keys, values = keys * kv.key_scales[slots, :, None], values * kv.value_scales[slots, :, None]
    return keys, values


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float, is_seen: Tensor | None) -> Tensor:
    """[queries, N, D] over [L, K, D], float64; `is_seen` [queries, L], None where all is seen."""
    grouped = queries.double().view(len(queries), keys.shape[1], queries.shape[1] // keys.shape[1], keys.shape[2])
    scores = torch.einsum("qkgd,lkd->qkgl", grouped, keys) * scale
    if is_seen is not None:
        scores = scores.masked_fill(~is_seen[:, None, None], float("-inf"))
    return torch.einsum("qkgl,lkd->qkgd", scores.softmax(dim=-1), values).flatten(1, 2)
