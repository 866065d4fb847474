"""Linear layers on a GPU: which kernel serves a product, by its shape and the weight's type.

T rows, N outputs, K inputs.
"""

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from deepseek_engine.kernels.triton.linear import linear_float, linear_w8a8, linear_w8a16
from deepseek_engine.kernels.triton.quantize_groups import QuantizedRows, quantize_groups
from deepseek_engine.models.gpu_weights import Matrix

MIN_INT8_ROWS: Final = 512
"""From so many rows on arithmetic counts more than weights: activations are quantised too, where weights are INT8."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a product reads: the values, or their INT8 form, or both."""

    values: Tensor | None
    int8: QuantizedRows | None = None

    @property
    def num_rows(self) -> int:
        """T."""
        assert self.values is not None or self.int8 is not None
        return self.values.shape[0] if self.values is not None else self.int8.values.shape[0]  # pyright: ignore[reportOptionalMemberAccess]


def wants_int8(matrix: Matrix, num_rows: int) -> bool:
    """Whether a product of so many rows reads them in INT8."""
    return matrix.scale is not None and num_rows >= MIN_INT8_ROWS


def multiply(rows: Rows, matrix: Matrix) -> Tensor:
    """`x W^T + b`: [T, N]."""
    if matrix.scale is None:
        assert rows.values is not None
        return linear_float(rows.values, matrix.weight, matrix.bias)
    if not wants_int8(matrix, rows.num_rows):
        assert rows.values is not None
        return linear_w8a16(rows.values, matrix.weight, matrix.scale, matrix.bias)
    int8 = rows.int8
    if int8 is None:
        assert rows.values is not None
        int8 = quantize_groups(rows.values)
    return linear_w8a8(int8.values, int8.scales, matrix.weight, matrix.scale, matrix.bias)
