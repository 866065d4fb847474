"""What a rank keeps of each tensor of a checkpoint: some of its rows, or some of its columns.

Rows are output channels, [out, in] as checkpoints store weights, and the entries of a bias.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class Share:
    """Ranges of one dimension, one behind the other.

    Attributes:
        axis: which dimension; of a tensor of one dimension `rows` are its entries.
        ranges: what is kept; without any the parameter is 0.
        full: the checkpoint's size of that dimension.
    """

    axis: Literal["rows", "columns"]
    ranges: tuple[slice, ...]
    full: int

    def whole_shape(self, shape: torch.Size) -> torch.Size:
        """The checkpoint's shape of a tensor of which this rank keeps one of the given shape."""
        sizes = list(shape)
        sizes[-1 if self.axis == "columns" or len(sizes) == 1 else -2] = self.full
        return torch.Size(sizes)

    def row_ranges(self) -> Iterator[tuple[slice, slice]]:
        """Rows of the parameter, and those of the checkpoint's tensor that go there."""
        start = 0
        for rows in self.ranges:
            end = start + rows.stop - rows.start
            yield slice(start, end), rows
            start = end


@dataclass(frozen=True, slots=True)
class Cut:
    """Says what one rank keeps, from how much it keeps; None is all of it."""

    rank: int = 0
    size: int = 1

    def rows(self, num_kept: int, *, matrices: int = 1, replicas: int = 1) -> Share | None:
        """Rows from each of some matrices that lie one below the other.

        Args:
            num_kept: rows of one matrix that a rank keeps.
            matrices: in the tensor: 2 for gates above ups.
            replicas: ranks, next to each other, that keep the same rows.
        """
        if self.size == 1:
            return None
        num_rows, start = num_kept * self.size // replicas, self.rank // replicas * num_kept
        starts = [matrix * num_rows + start for matrix in range(matrices)]
        return Share("rows", tuple(slice(at, at + num_kept) for at in starts), matrices * num_rows)

    def columns(self, num_kept: int) -> Share | None:
        """As many columns."""
        if self.size == 1:
            return None
        start = self.rank * num_kept
        return Share("columns", (slice(start, start + num_kept),), self.size * num_kept)

    def once(self, num_rows: int) -> Share | None:
        """A bias that is added to a sum over all ranks: the first one has it, the others 0."""
        return None if self.rank == 0 else Share("rows", (), num_rows)
