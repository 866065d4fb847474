"""Weights packed once for the CPU kernels, and their products with rows.

N outputs, K inputs, R rows.
"""

import ctypes
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deepseek_engine.kernels.cpu.library import (
    BF16,
    FLOAT,
    INT8,
    STORE_BF16,
    STORE_FLOAT,
    Library,
    Matrix,
    Product,
    load,
)

PANEL: Final = 32
MULTIPLES: Final = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}
"""What the number of inputs must be a multiple of, by the type of the weights."""

GATE_GROUP: Final = 16
"""Gates and values of a fused gate-and-up projection alternate in groups of this many outputs."""


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A weight matrix in the kernels' order; holds the memory that `matrix` points to."""

    matrix: Matrix
    tensors: tuple[Tensor, ...]
    library: Library

    @classmethod
    def pack(
        cls, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, *, interleave: bool = False
    ) -> "PackedMatrix | None":
        """Pack a matrix, or return None where the kernels cannot run or cannot take it.

        Args:
            weight: [N, K], bfloat16, float32, or int8 with its scale; K must be even for bfloat16, and a multiple of
                4 for int8.
            bias: [N].
            scale: float32 [N] of an int8 weight.
            interleave: the first half of the outputs are gates and the second half values; they become groups of 16
                gates and 16 values, as the `silu(gate) * value` product wants them. N must be a multiple of 32.
        """
        library = load()
        num_outputs, num_inputs = weight.shape
        is_int8 = weight.dtype is torch.int8
        if library is None or weight.dtype not in MULTIPLES or num_inputs % MULTIPLES[weight.dtype]:
            return None
        if interleave:
            if num_outputs % (2 * GATE_GROUP):
                return None
            order = interleaved(num_outputs)
            weight = weight[order]
            bias = None if bias is None else bias[order]
            scale = None if scale is None else scale[order]
        padded = -(-num_outputs // PANEL) * PANEL
        weight = weight.contiguous()
        data = torch.empty(padded * num_inputs, dtype=weight.dtype)
        tensors = [data]
        matrix = Matrix(data=data.data_ptr(), num_inputs=num_inputs, num_outputs=num_outputs)
        if is_int8:
            assert scale is not None, "an int8 matrix has scales"
            sums, scales = torch.zeros(padded, dtype=torch.int32), _padded(scale, padded)
            library.pack_int8(weight.data_ptr(), num_outputs, num_inputs, data.data_ptr(), sums.data_ptr())
            matrix.kind, matrix.sums, matrix.scale = INT8, sums.data_ptr(), scales.data_ptr()
            tensors += [sums, scales]
        elif weight.dtype is torch.float32:
            library.pack_float(weight.data_ptr(), num_outputs, num_inputs, data.data_ptr())
            matrix.kind = FLOAT
        else:
            library.pack_bf16(weight.data_ptr(), num_outputs, num_inputs, data.data_ptr())
            matrix.kind = BF16
        if bias is not None:
            padded_bias = _padded(bias, padded)
            matrix.bias = padded_bias.data_ptr()
            tensors.append(padded_bias)
        return cls(matrix, tuple(tensors), library)

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed weights, their scales and bias."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def multiply(self, rows: Tensor, epilogue: int = STORE_BF16, target: Tensor | None = None) -> Tensor:
        """Rows times the matrix; each row's result depends on that row only.

        Args:
            rows: bfloat16 [R, K].
            epilogue: what becomes of the products, one of the constants of `library`.
            target: where they go, or are added to; made by default.

        Returns:
            [R, N], bfloat16, or float32 for STORE_FLOAT; [R, N / 2] for SILU_MUL.
        """
        rows = rows.contiguous()
        num_rows = rows.shape[0]
        if target is None:
            width = self.matrix.num_outputs if epilogue in (STORE_BF16, STORE_FLOAT) else self.matrix.num_outputs // 2
            target = torch.empty(num_rows, width, dtype=torch.float32 if epilogue == STORE_FLOAT else torch.bfloat16)
        product = Product(
            matrix=ctypes.pointer(self.matrix),
            rows=rows.data_ptr(),
            num_rows=num_rows,
            epilogue=epilogue,
            target=target.data_ptr(),
            target_stride=target.stride(0),
        )
        if self.matrix.kind == INT8:
            values, scales = torch.empty(2, *rows.shape, dtype=torch.uint8), torch.empty(num_rows)
            self.library.quantize_rows(
                rows.data_ptr(), num_rows, self.matrix.num_inputs, values.data_ptr(), scales.data_ptr()
            )
            product.bytes, product.row_scales = values.data_ptr(), scales.data_ptr()
        self.library.matmul(product)
        return target


def interleaved(num_outputs: int) -> Tensor:
    """Which original output stands at each place: 16 gates, their 16 values, the next 16 gates."""
    gates, values = torch.arange(num_outputs).view(2, -1, GATE_GROUP)
    return torch.stack((gates, values), dim=1).reshape(-1)


def _padded(values: Tensor, length: int) -> Tensor:
    padded = torch.zeros(length)
    padded[: values.shape[0]] = values
    return padded
