"""The three functions of bitsandbytes 0.50 that the engine calls, in plain PyTorch, where the package is not installed.

T tokens, N channels out, K channels in.
"""

import sys
from types import ModuleType
from typing import Final

import pytest
import torch
from torch import Tensor

VERSION: Final = "0.50.2"


class FakeBitsandbytes(ModuleType):
    """`bitsandbytes.functional`.

    Attributes:
        products: T, N and K of each so far.
    """

    def __init__(self) -> None:
        super().__init__("bitsandbytes.functional")
        self.products: list[tuple[int, int, int]] = []

    def int8_vectorwise_quant(self, A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
        """INT8 [T, K], float32 [T] of the largest values, and no outliers."""
        _check(A.dtype is torch.float16, f"A must be float16, got {A.dtype}")
        _check(threshold == 0.0, "outliers are not part of this stand-in")
        _check(A.is_contiguous() and A.numel() > 0, "CUDA would read other memory, or end the process")
        largest = A.abs().amax(dim=1).float()
        values = A.float() * (127 / largest)[:, None]
        return values.nan_to_num().round().to(torch.int8), largest, None  # a row of zeros has no scale

    def int8_linear_matmul(self, A: Tensor, B: Tensor) -> Tensor:
        """int32 [T, N] of INT8 [T, K] and [N, K]."""
        _check(B.dtype is torch.int8, "B must be int8")
        _check(A.dtype is torch.int8, "A must be int8")
        _check(B.dim() == 2, "Only two dimensional matrices are supported for argument B")
        _check(A.numel() > 0, f"Input tensor dimensions need to be > 0: {A.shape}")
        _check(A.shape[1] == B.shape[1], f"Inner dimensions do not match: {A.shape} @ {B.shape}")
        _check(A.is_contiguous() and B.is_contiguous(), "CUDA would read other memory")
        _check(B.shape[0] % 4 == 0 and B.shape[1] % 4 == 0, "cuBLAS fails, or floats are multiplied instead")
        self.products.append((A.shape[0], B.shape[0], B.shape[1]))
        return (A.double() @ B.double().t()).to(torch.int32)  # CUDA has no product of integers

    def int8_mm_dequant(
        self,
        A: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        out: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """float16 [T, N] from int32 [T, N] and both factors' largest values."""
        _check(A.dtype is torch.int32, f"A must be int32, got {A.dtype}")
        _check(row_stats.dtype is torch.float32, f"row_stats must be float32, got {row_stats.dtype}")
        _check(col_stats.dtype is torch.float32, f"col_stats must be float32, got {col_stats.dtype}")
        _check(out is None, "given outputs are not part of this stand-in")
        _check(bias is None or bias.dtype is torch.float16, "another bias would be a launch of its own")
        product = A * (row_stats[:, None] * col_stats[None]) / (127 * 127)
        return (product if bias is None else product + bias).to(torch.float16)


def install_fake_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> FakeBitsandbytes:
    """Let `import bitsandbytes.functional` find the stand-in until the test ends."""
    package, functional = ModuleType("bitsandbytes"), FakeBitsandbytes()
    package.__dict__["__version__"] = VERSION
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    return functional


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise ValueError(message)
