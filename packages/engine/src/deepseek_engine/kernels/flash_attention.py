"""flash-attn 2 over our pages, where it is installed: beside our own kernels, for who wants it.

Its functions attend and no more: what rotates queries and caches keys and values runs before them.
T tokens, D rows of single tokens, C chunks, N query heads, K key/value heads, M blocks of a table.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_engine.kernels.flash_library import FlashLibrary
from deepseek_engine.kernels.paged_kv import PagedKV
from deepseek_engine.kernels.triton.clear_rows import clear_rows


@dataclass(frozen=True, slots=True)
class FlashChunks:
    """Prefill chunks as the package takes them; the same for all layers of a step.

    Attributes:
        cu_seqlens_q: int32 [C + 1], where each chunk begins among the rows.
        cu_seqlens_k: int32 [C + 1], where each context would begin if they lay one behind the other.
        block_tables: int32 [C, M].
        max_seqlen_q: rows of a chunk at most.
        is_padded: whether rows of no sequence lie behind the last chunk.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    block_tables: Tensor
    max_seqlen_q: int
    is_padded: bool


def plan_flash_chunks(
    cu_seqlens: Tensor, context_lens: Tensor, block_tables: Tensor, max_len: int, *, is_padded: bool
) -> FlashChunks:
    """Lay out a step's chunks, on the device and by shapes alone.

    Args:
        cu_seqlens: int32 [C + 1].
        context_lens: int32 [C].
        block_tables: int32 [C, M].
        max_len: tokens of a chunk at most.
        is_padded: whether rows of no sequence lie behind the last chunk.
    """
    cu_seqlens_k = F.pad(torch.cumsum(context_lens, 0, dtype=torch.int32), (1, 0))
    return FlashChunks(cu_seqlens, cu_seqlens_k, block_tables, max_len, is_padded)


def flash_decode(
    library: FlashLibrary, q: Tensor, kv: PagedKV, block_tables: Tensor, context_lens: Tensor, *, scale: float
) -> Tensor:
    """Attend with one token a row, whose key and value are in the cache.

    How it splits contexts follows from shapes, so that a graph may hold it.

    Args:
        library: of `load_flash_attention`.
        q: [D, N, head_dim], rotated.
        kv: the layer's cache.
        block_tables: int32 [D, M].
        context_lens: int32 [D], with the row's own token; 0 is a row of padding, of which zeros come out.
        scale: of the scores.

    Returns:
        [D, N, head_dim].
    """
    keys, values = _pages(kv)
    return library.with_kvcache(
        q[:, None], keys, values, cache_seqlens=context_lens, block_table=block_tables, softmax_scale=scale, causal=True
    )[:, 0]


def flash_prefill(library: FlashLibrary, q: Tensor, kv: PagedKV, chunks: FlashChunks, *, scale: float) -> Tensor:
    """Attend with chunks of new tokens, whose keys and values are in the cache.

    Args:
        library: of `load_flash_attention`.
        q: [T, N, head_dim], rotated.
        kv: the layer's cache.
        chunks: of `plan_flash_chunks`.
        scale: of the scores.

    Returns:
        [T, N, head_dim], zeros in the rows of no sequence: what comes behind must not meet what nobody wrote. (A chunk
        of them that has no context would come out as zeros as well, but flash-attn 2.8 writes its logarithm, for rows
        that see nothing over pages, where it would lie if all chunks were as long as the longest: behind its memory.)
    """
    keys, values = _pages(kv)
    out = library.varlen(
        q, keys, values, cu_seqlens_q=chunks.cu_seqlens_q, cu_seqlens_k=chunks.cu_seqlens_k,
        max_seqlen_q=chunks.max_seqlen_q, max_seqlen_k=chunks.block_tables.shape[1] * kv.block_size,
        softmax_scale=scale, causal=True, block_table=chunks.block_tables,
    )  # fmt: skip
    if chunks.is_padded:
        clear_rows(out, chunks.cu_seqlens_q[-1:])
    return out


def _pages(kv: PagedKV) -> tuple[Tensor, Tensor]:
    """Keys and values, [blocks, block_size, K, head_dim]."""
    shape = (-1, kv.block_size, kv.num_heads, kv.head_dim)
    return kv.keys.view(shape), kv.values.view(shape)
