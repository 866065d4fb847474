"""Attention over pages with the CPU kernels.

T tokens of the step, B sequences, D head_dim.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_engine.kernels.cpu.library import Attention, Batch, Library

GROUP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """The sequences of a step, whose new tokens are consecutive rows.

    Attributes:
        first_rows: int32 [B + 1], the row of each sequence's first new token, and T.
        context_lens: int32 [B], tokens of each sequence, the new ones among them.
        block_tables: int32 [B, most blocks].
        block_size: tokens a block, a multiple of 16.
        prefix_lens: int32 [B], leading tokens that attend to each other in both directions; None is no such tokens.
    """

    first_rows: Tensor
    context_lens: Tensor
    block_tables: Tensor
    block_size: int
    prefix_lens: Tensor | None = None

    def structure(self) -> Batch:
        """What the kernels read; valid as long as this object is."""
        return Batch(
            num_sequences=self.context_lens.shape[0],
            first_row=self.first_rows.data_ptr(),
            context_lens=self.context_lens.data_ptr(),
            prefix_lens=None if self.prefix_lens is None else self.prefix_lens.data_ptr(),
            block_tables=self.block_tables.data_ptr(),
            table_stride=self.block_tables.shape[1],
            block_size=self.block_size,
        )


def attend(
    library: Library,
    qkv: Tensor,
    cache: tuple[Tensor, Tensor],
    batch: PagedBatch,
    *,
    num_heads: int,
    cos_sin: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Rotate, write keys and values to the cache, attend.

    Args:
        library: the kernels.
        qkv: bfloat16 [T, heads + 2 kv heads, D], changed in place; D a multiple of 16.
        cache: a layer's keys and values, bfloat16 [slots, kv heads, D], in the kernels' own order.
        batch: the step's sequences.
        num_heads: query heads.
        cos_sin: float32 [positions, 2, D / 2], or None for no rotation.
        scale: of the scores; 1 / sqrt(D) by default.

    Returns:
        bfloat16 [T, heads, D].
    """
    keys, values = cache
    num_rows, _, head_dim = qkv.shape
    target = torch.empty(num_rows, num_heads, head_dim, dtype=qkv.dtype)
    structure = batch.structure()
    arguments = Attention(
        batch=ctypes.pointer(structure),
        qkv=qkv.data_ptr(),
        row_stride=qkv.stride(0),
        num_heads=num_heads,
        num_kv_heads=keys.shape[1],
        head_dim=head_dim,
        cos_sin=None if cos_sin is None else cos_sin.data_ptr(),
        scale=head_dim**-0.5 if scale is None else scale,
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        target=target.data_ptr(),
    )
    library.attention_write(arguments)
    library.attention_attend(arguments)
    return target
