"""A stand-in for the package flash_attn where it is not installed: its two functions in plain PyTorch.

Their signatures, what they insist on and what they answer for rows that see nothing are those of flash-attn 2.8
(flash_attn/flash_attn_interface.py and csrc/flash_attn/flash_api.cpp); they are slow, and only do what is asked of them
here.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

PAGE_MULTIPLE = 256


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor:
    """[B, queries, N, D] of the last queries of each sequence over its pages."""
    unused = (k, v, rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad, alibi_slopes)
    assert all(each is None for each in unused), "the stand-in has no cache writes, rotation, indices and biases"
    assert window_size == (-1, -1)
    assert softcap == 0.0
    assert rotary_interleaved, "as it is by default, since nothing rotates"
    assert num_splits == 0
    assert not return_softmax_lse
    assert block_table is not None
    batch, num_queries, num_heads, dim = q.shape
    _check_pages(q, k_cache, v_cache, block_table, batch)
    assert isinstance(cache_seqlens, Tensor), "on the device: a number would be one for all"
    assert cache_seqlens.dtype == torch.int32, "seqlens_k must have dtype int32"
    assert cache_seqlens.is_contiguous(), "seqlens_k must be contiguous"
    assert cache_seqlens.shape == (batch,)
    out = torch.full_like(q, float("nan"))
    for row, context in enumerate(cast("list[int]", cache_seqlens.tolist())):
        out[row] = _attend(q[row], k_cache, v_cache, block_table[row], context, softmax_scale, causal=causal)
    assert out.shape == (batch, num_queries, num_heads, dim)
    return out


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """[T, N, D] of each sequence's queries, the last of its context, over its pages."""
    assert dropout_p == 0.0
    assert window_size == (-1, -1)
    assert softcap == 0.0
    assert alibi_slopes is None
    assert not deterministic
    assert not return_attn_probs
    assert block_table is not None
    batch = len(cu_seqlens_q) - 1
    _check_pages(q, k, v, block_table, batch)
    for each in (cu_seqlens_q, cu_seqlens_k):
        assert each.dtype == torch.int32, "cu_seqlens must have dtype int32"
        assert each.is_contiguous(), "cu_seqlens must be contiguous"
        assert each.shape == (batch + 1,)
    out = torch.full_like(q, float("nan"))  # the package writes no rows of no sequence either
    begins, ends = (cast("list[int]", each.tolist()) for each in (cu_seqlens_q, cu_seqlens_k))
    for row in range(batch):
        rows, context = slice(begins[row], begins[row + 1]), ends[row + 1] - ends[row]
        assert rows.stop - rows.start <= max_seqlen_q, "rows beyond it are not computed"
        assert context <= max_seqlen_k
        assert context > 0 or rows.start == rows.stop, "the package writes behind its memory for rows without context"
        out[rows] = _attend(q[rows], k, v, block_table[row], context, softmax_scale, causal=causal)
    return out


def _check_pages(q: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, batch: int) -> None:
    num_blocks, page, num_kv_heads, dim = keys.shape
    assert q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type"
    assert keys.dtype == values.dtype == q.dtype, "query and key must have the same dtype"
    assert page % PAGE_MULTIPLE == 0, "Paged KV cache block size must be divisible by 256"
    assert values.shape == (num_blocks, page, num_kv_heads, dim)
    assert q.shape[-1] == dim
    assert dim % 8 == 0, "head_size that is a multiple of 8"
    assert dim <= 256, "FlashAttention forward only supports head dimension at most 256"
    assert q.shape[-2] % num_kv_heads == 0, "Number of heads in key/value must divide number of heads in query"
    assert all(each.stride(-1) == 1 for each in (q, keys, values, block_table)), "contiguous last dimension"
    assert block_table.dtype == torch.int32, "block_table must have dtype torch.int32"
    assert block_table.ndim == 2
    assert len(block_table) == batch, "block_table must have shape (batch_size, max_num_blocks_per_seq)"


def _attend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, context: int, scale: float | None, *, causal: bool
) -> Tensor:
    """[queries, N, D] of the last queries of a context, float32 inside; zeros for those that see nothing."""
    num_queries, num_heads, dim = q.shape
    if num_queries == 0 or context == 0:
        return torch.zeros_like(q)
    page, num_kv_heads = k.shape[1:3]
    blocks = table[: -(-context // page)].long()
    keys, values = (
        x[blocks].flatten(0, 1)[:context].float().repeat_interleave(num_heads // num_kv_heads, dim=1) for x in (k, v)
    )
    scores = torch.einsum("qnd,lnd->nql", q.float(), keys) * (dim**-0.5 if scale is None else scale)
    if causal:  # aligned to the bottom right corner
        last = torch.arange(num_queries, device=q.device)[:, None] + context - num_queries
        scores = scores.masked_fill(torch.arange(context, device=q.device) > last, float("-inf"))
    weights = scores.softmax(dim=-1).nan_to_num(0.0)
    return torch.einsum("nql,lnd->qnd", weights, values).to(q.dtype)


@contextmanager
def stand_in(version: str = "2.8.3") -> Generator[ModuleType]:
    """Within, `import flash_attn` gives this one."""
    module = ModuleType("flash_attn")
    module.__dict__.update(
        __version__=version,
        flash_attn_with_kvcache=flash_attn_with_kvcache,
        flash_attn_varlen_func=flash_attn_varlen_func,
    )
    before = sys.modules.get("flash_attn")
    sys.modules["flash_attn"] = module
    try:
        yield module
    finally:
        if before is None:
            del sys.modules["flash_attn"]
        else:
            sys.modules["flash_attn"] = before
