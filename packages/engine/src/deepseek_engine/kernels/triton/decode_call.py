"""What the kernels for attention of one new token a row take alike.

B rows, N query heads, K key/value heads, D head_dim, M blocks of a row.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from deepseek_engine.kernels.paged_kv import HeadNorms, PagedKV
from deepseek_engine.kernels.triton.launch import has_dependent_launch, power_of_two

MATRIX_ROWS: Final = 16
"""Rows of the smallest matrix product: query heads of a group are padded to it."""


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """What programs of one launch hand each other; shared by launches that follow one another.

    Attributes:
        partials: float32, weighted values of each row, key/value head, split and query head.
        totals: float32, the largest score and the sum of weights of the same.
        counters: int32, shares that are done of each row and key/value head; 0 between launches.
    """

    partials: Tensor
    totals: Tensor
    counters: Tensor


@dataclass(frozen=True, slots=True)
class DecodeCall:
    """One launch; what is not said here is as of `decode_attention`.

    Attributes:
        out: [B, N * D], written.
        scale: of the scores, for powers of 2.
    """

    qkv: Tensor
    out: Tensor
    kv: PagedKV
    block_tables: Tensor
    context_lens: Tensor
    scratch: DecodeScratch
    scale: float
    cos_sin: Tensor | None
    norms: HeadNorms | None

    @property
    def group(self) -> int:
        """Query heads of a key/value head."""
        return self.out.shape[1] // self.kv.head_dim // self.kv.num_heads

    def grid(self, num_splits: int) -> tuple[int, int, int]:
        """Programs: a key/value head, a row, a share of its context."""
        return self.kv.num_heads, self.qkv.shape[0], num_splits

    @property
    def block_group(self) -> int:
        """Rows of a matrix product with the queries of a group; float32 has no matrix units to fill."""
        return max(1 if self.qkv.dtype == torch.float32 else MATRIX_ROWS, power_of_two(self.group))

    def arguments(self, num_splits: int, min_split: int) -> tuple[Any, ...]:
        """The kernels' arguments by position."""
        qkv, kv, norms, scratch = self.qkv, self.kv, self.norms, self.scratch
        return (
            qkv, self.out, kv.keys, kv.values, *kv.scales, qkv if self.cos_sin is None else self.cos_sin,
            *((qkv, qkv) if norms is None else (norms.query, norms.key)), self.block_tables, self.context_lens,
            scratch.partials, scratch.totals, scratch.counters, qkv.stride(0), self.block_tables.stride(0),
            num_splits, min_split, self.scale, 0.0 if norms is None else norms.eps,
        )  # fmt: skip

    def options(self) -> dict[str, Any]:
        """The kernels' constants that follow from shapes and types, and how they are launched."""
        kv, is_dependent = self.kv, has_dependent_launch(self.qkv.device)
        return {
            "KV_HEADS": kv.num_heads,
            "GROUP": self.group,
            "D": kv.head_dim,
            "BLOCK_D": power_of_two(kv.head_dim),
            "BLOCK_SIZE": kv.block_size,
            "IS_FUSED": self.cos_sin is not None,
            "HAS_NORM": self.norms is not None,
            "IS_INT8": kv.key_scales is not None,
            "IS_DEPENDENT": is_dependent,
            "launch_pdl": is_dependent,
        }
