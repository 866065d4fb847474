"""Weights as a checkpoint stores them, written to a model's parameters in pieces.

The float32 copies that it takes stay small beside the tensor, whatever its size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol, Self

import torch
from torch import Tensor

from deepseek_engine.quantization.int8 import dequantize_rows, quantize_rows

VALUES_AT_A_TIME: Final = 2**18
"""A megabyte of float32: it and its copies stay in a core's cache, and are little beside a shard for every thread."""

ALL: Final = slice(None)
Index = tuple[int | slice, ...]
"""Of outer dimensions; columns are cut as parts of rows are read."""


class EncodedTensor(Protocol):
    """A weight [..., N, K] in a form of which float32 rows can be had."""

    @property
    def shape(self) -> torch.Size:
        """Of the weight itself."""
        ...

    @property
    def num_bytes(self) -> int:
        """Of the values and their scales."""
        ...

    def row_parts(self) -> Iterator[Tensor]:
        """float32 [rows, K]: the rows of `flatten(0, -2)`, a few at a time, in order."""
        ...

    def __getitem__(self, index: "Index") -> Self:
        """A part of it: entries of the outer dimensions, or ranges of rows."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Int8Rows:
    """int8 [..., N, K] with a scale for each row, float32 [..., N]."""

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        """[..., N, K]."""
        return self.values.shape

    @property
    def num_bytes(self) -> int:
        """See `EncodedTensor`."""
        return self.values.nbytes + self.scale.nbytes

    def __getitem__(self, index: Index) -> "Int8Rows":
        """See `EncodedTensor`."""
        return Int8Rows(self.values[index], self.scale[index])

    def row_parts(self) -> Iterator[Tensor]:
        """See `EncodedTensor`."""
        values, scale = self.values.flatten(0, -2), self.scale.flatten()
        rows = _rows_at_a_time(values)
        for part, part_scale in zip(torch.split(values, rows), torch.split(scale, rows), strict=True):
            yield dequantize_rows(part, part_scale)


def row_parts(values: Tensor | EncodedTensor) -> Iterator[Tensor]:
    """Rows [rows, K] of `flatten(0, -2)`, a few at a time, in order; of a plain tensor in its own type."""
    if isinstance(values, Tensor):
        yield from values.flatten(0, -2).split(_rows_at_a_time(values))
    else:
        yield from values.row_parts()


def copy_into(target: Tensor, values: Tensor | EncodedTensor, columns: slice = ALL) -> None:
    """Write a weight, or some columns of it, to a parameter of a float type and of that shape."""
    if isinstance(values, Tensor):
        target.copy_(values[..., columns])
        return
    rows, start = target.flatten(0, -2), 0
    for part in values.row_parts():
        rows[start : start + part.shape[0]].copy_(part[:, columns])
        start += part.shape[0]


def quantize_into(target: Tensor, scale: Tensor, values: Tensor | EncodedTensor, columns: slice = ALL) -> None:
    """Write a weight to an int8 parameter [..., N, K] and its scales [..., N]; what is INT8 already stays as it is.

    Of some columns alone, values and scales are those that they have in whole rows.
    """
    if isinstance(values, Int8Rows):
        target.copy_(values.values[..., columns])
        scale.copy_(values.scale)
        return
    rows, scales, start = target.flatten(0, -2), scale.flatten(), 0
    for part in row_parts(values):
        end = start + part.shape[0]
        quantized, found = quantize_rows(part)
        rows[start:end].copy_(quantized[:, columns])
        scales[start:end].copy_(found)
        start = end


def _rows_at_a_time(values: Tensor) -> int:
    return max(1, VALUES_AT_A_TIME // values.shape[-1])
