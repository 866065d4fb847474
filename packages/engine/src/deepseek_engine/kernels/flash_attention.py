"""flash-attn 2 over our pages, where it is installed: beside our own kernels, for who wants it.

Its functions attend and no more: what rotates queries and caches keys and values runs before them.
T tokens, D rows of single tokens, C chunks, N query heads, K key/value heads, M blocks of a table.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.kernels.paged_kv import PagedKV

MAJOR_VERSION: Final = "2"
"""Whose functions take block tables as they are called here."""


@dataclass(frozen=True, slots=True)
class FlashLibrary:
    """What is called of the package.

    Attributes:
        version: of the package.
        with_kvcache: `flash_attn_with_kvcache`.
        varlen: `flash_attn_varlen_func`.
    """

    version: str
    with_kvcache: Callable[..., Tensor]
    varlen: Callable[..., Tensor]


def load_flash_attention() -> FlashLibrary:
    """The package, imported.

    Raises:
        ModelLoadError: it is not installed, or another version than 2.
    """
    way_out = "see docs/engine/gpu.md for how to build it, or use attention_backend='triton'"
    try:
        package = importlib.import_module("flash_attn")
    except ImportError as error:
        raise ModelLoadError(
            f"attention_backend='flash' needs the package flash_attn, which cannot be imported ({error}): {way_out}"
        ) from error
    version = str(package.__version__)
    if version.partition(".")[0] != MAJOR_VERSION:
        raise ModelLoadError(
            f"attention_backend='flash' needs flash_attn {MAJOR_VERSION}, and {version} is installed: {way_out}"
        )
    return FlashLibrary(version, package.flash_attn_with_kvcache, package.flash_attn_varlen_func)


@dataclass(frozen=True, slots=True)
class FlashChunks:
    """Prefill chunks as the package takes them; the same for all layers of a step.

    Attributes:
        cu_seqlens_q: int32 [C + 1], where each chunk begins among the rows.
        cu_seqlens_k: int32 [C + 1], where each context would begin if they lay one behind the other.
        block_tables: int32 [C, M].
        max_seqlen_q: rows of a chunk at most.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    block_tables: Tensor
    max_seqlen_q: int


def plan_flash_chunks(
    cu_seqlens: Tensor, context_lens: Tensor, block_tables: Tensor, max_len: int, num_padded: int | None
) -> FlashChunks:
    """Lay out a step's chunks, on the device and by shapes alone.

    Args:
        cu_seqlens: int32 [C + 1].
        context_lens: int32 [C].
        block_tables: int32 [C, M].
        max_len: tokens of a chunk at most.
        num_padded: rows with those of no sequence behind the last chunk; None if there are none. They become a chunk
            without context, of which zeros come out: what comes behind must not meet what nobody wrote.
    """
    if num_padded is not None:
        cu_seqlens = F.pad(cu_seqlens, (0, 1), value=num_padded)
        context_lens = F.pad(context_lens, (0, 1))
        block_tables = F.pad(block_tables, (0, 0, 0, 1))
        max_len = num_padded
    cu_seqlens_k = F.pad(torch.cumsum(context_lens, 0, dtype=torch.int32), (1, 0))
    return FlashChunks(cu_seqlens, cu_seqlens_k, block_tables, max_len)


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
        [T, N, head_dim].
    """
    keys, values = _pages(kv)
    return library.varlen(
        q, keys, values, cu_seqlens_q=chunks.cu_seqlens_q, cu_seqlens_k=chunks.cu_seqlens_k,
        max_seqlen_q=chunks.max_seqlen_q, max_seqlen_k=chunks.block_tables.shape[1] * kv.block_size,
        softmax_scale=scale, causal=True, block_table=chunks.block_tables,
    )  # fmt: skip


def _pages(kv: PagedKV) -> tuple[Tensor, Tensor]:
    """Keys and values, [blocks, block_size, K, head_dim]."""
    shape = (-1, kv.block_size, kv.num_heads, kv.head_dim)
    return kv.keys.view(shape), kv.values.view(shape)
