"""Low-rank changes of a linear layer's output, for the rows of several adapters in one batch. Plain PyTorch.

T rows, I inputs, O outputs, R ranks of all projections together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from deepseek_engine.layers.linear import linear

Rows = slice | Tensor
"""Rows of a batch: a slice where they follow each other, else their int64 numbers."""


@dataclass(frozen=True, slots=True)
class LowRankPart:
    """One projection of a fused layer: `y[:, columns] += (x A^T)[:, ranks] B^T`; the adapter's scaling is in B_OR."""

    columns: slice
    ranks: slice
    b_OR: Tensor


@dataclass(frozen=True, slots=True)
class LowRankFactors:
    """One adapter's change of one linear layer: the A of all its projections, one below the other, and each one's B."""

    a_RI: Tensor
    parts: tuple[LowRankPart, ...]

    @property
    def num_bytes(self) -> int:
        """Memory of all factors."""
        return self.a_RI.nbytes + sum(part.b_OR.nbytes for part in self.parts)


def add_low_rank(y_TO: Tensor, x_TI: Tensor, groups: Sequence[tuple[Rows, LowRankFactors]]) -> None:
    """Add each group's change to its rows of y, in place; rows in no group stay as they are.

    A then B, never B A: for rank r that is r (I + O) products a row instead of I O.

    Args:
        y_TO: the base layer's output.
        x_TI: its input.
        groups: rows and the factors of their adapter; no row is in two groups.

    Source: S-LoRA (arXiv 2311.03285), section 5, here as one dense product a group.
    """
    for rows, factors in groups:
        x = x_TI[rows] if isinstance(rows, slice) else x_TI.index_select(0, rows)
        h_TR = linear(x, factors.a_RI)
        for part in factors.parts:
            change = linear(h_TR[:, part.ranks], part.b_OR)
            if isinstance(rows, slice):
                y_TO[rows, part.columns] += change
            else:
                y_TO[:, part.columns].index_add_(0, rows, change)
