"""INT8 linear layers through bitsandbytes: cuBLAS products with one scale a token, no outliers held back (threshold 0).

Beside our own kernel for comparison and for those who want it; its three operations are launches of their own.
T tokens, N channels out, K channels in.
"""

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from deepseek_engine.errors import ModelLoadError


@functools.cache
def load_bitsandbytes() -> ModuleType:
    """`bitsandbytes.functional`, imported when it is first needed.

    Raises:
        ModelLoadError: it is not installed.
    """
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ModelLoadError(
            "the bitsandbytes backend for INT8 linear layers needs the package bitsandbytes, which cannot be imported "
            f"({error}): install bitsandbytes>=0.50,<0.51 or choose the triton backend"
        ) from error


def linear_bitsandbytes(x: Tensor, weight: Tensor, largest: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` with both factors in INT8.

    Args:
        x: [T, K]. It goes through float16, all that the library quantises: beyond 65504 a value is infinite.
        weight: int8 [N, K].
        largest: float32 [N], each channel's largest absolute value: 127 times its scale.
        bias: [N], added in float16.

    Returns:
        [T, N] of x's type.

    Raises:
        ModelLoadError: bitsandbytes is not installed.
    """
    library = load_bitsandbytes()
    values, largest_T, _ = library.int8_vectorwise_quant(x.to(torch.float16), threshold=0.0)
    product = library.int8_linear_matmul(values, weight)
    half_bias = None if bias is None else bias.to(torch.float16)
    return library.int8_mm_dequant(product, largest_T, largest, bias=half_bias).to(x.dtype)
