"""Linear layers on a GPU: activations in the form that the kernel for this many rows reads, and the kernel.

T rows, N outputs, K inputs.
"""

from dataclasses import dataclass

from torch import Tensor

from deepseek_engine.kernels.linear_bitsandbytes import linear_bitsandbytes
from deepseek_engine.kernels.triton.linear import choose_linear, linear_bf16, linear_w8a16
from deepseek_engine.kernels.triton.linear_int8 import linear_w8a8
from deepseek_engine.kernels.triton.quantize_groups import QuantizedRows, quantize_groups
from deepseek_engine.models.gpu_weights import Matrix


@dataclass(frozen=True, slots=True)
class Rows:
    """What a product reads: the values [T, K], or the same in INT8, or both.

    Attributes:
        values: of the model's type; None if only the INT8 form was made.
        int8: with a scale for each group of channels; None if it was not made.
    """

    values: Tensor | None
    int8: QuantizedRows | None = None


def wants_int8(matrix: Matrix, num_rows: int) -> bool:
    """Whether the product of so many rows reads them in INT8; bitsandbytes quantises its rows itself."""
    return matrix.scale is not None and matrix.largest is None and choose_linear(num_rows, "int8") == "w8a8"


def multiply(rows: Rows, matrix: Matrix) -> Tensor:
    """`x W^T + b`: [T, N]."""
    if matrix.scale is None:
        assert rows.values is not None
        return linear_bf16(rows.values, matrix.weight, matrix.bias)
    if matrix.largest is not None:
        assert rows.values is not None
        return linear_bitsandbytes(rows.values, matrix.weight, matrix.largest, matrix.bias)
    int8 = rows.int8
    if int8 is None:
        assert rows.values is not None
        if not wants_int8(matrix, rows.values.shape[0]):
            return linear_w8a16(rows.values, matrix.weight, matrix.scale, matrix.bias)
        int8 = quantize_groups(rows.values)
    return linear_w8a8(int8.values, int8.scales, matrix.weight, matrix.scale, matrix.bias)
