"""INT8 linear layers through bitsandbytes: cuBLAS products with one scale a token, no outliers held back (threshold 0).

Beside our own kernel for comparison and for those who want it; its three operations are launches of their own, between
two of PyTorch's from bfloat16 to float16 and back. None of them waits for the device, nor allocates outside PyTorch
once the first has made a cuBLAS handle, so that CUDA graphs hold them.

T tokens, N channels out, K channels in.
"""

import importlib
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from deepseek_engine.errors import ModelLoadError

SIZE_MULTIPLE: Final = 4
"""Of N and K. With another K bitsandbytes multiplies floats without a word, and with another N cuBLAS fails."""

MAX_OUTPUTS: Final = 2**31 - 2**12
"""T times N in one call: it counts them in 32 bits, and ends the process where that is not enough."""


def load_bitsandbytes() -> ModuleType:
    """`bitsandbytes.functional`, imported when it is first needed: it is an extra.

    Raises:
        ModelLoadError: it is not installed.
    """
    try:
        return importlib.import_module("bitsandbytes.functional")
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelLoadError(
            f"linear_backend='bitsandbytes' needs the package bitsandbytes, which cannot be imported ({error}): "
            "pip install 'deepseek-engine[bitsandbytes]', or use linear_backend='triton'"
        ) from error


def bitsandbytes_name() -> str:
    """With the version; errors as of `load_bitsandbytes`."""
    load_bitsandbytes()
    return f"bitsandbytes {importlib.import_module('bitsandbytes').__version__}"


def try_bitsandbytes(device: torch.device) -> None:
    """Multiply something small.

    Raises:
        ModelLoadError: bitsandbytes is not installed, has no code for this device, or gives another product.
    """
    load_bitsandbytes()
    values = torch.arange(-16.0, 16.0, device=device).repeat(4, 1)
    weight, largest = (4 * values).to(torch.int8), torch.full((4,), 127.0, device=device)
    try:
        out = linear_bitsandbytes(values.to(torch.bfloat16), weight, largest).float()
    except Exception as error:
        raise ModelLoadError(
            f"linear_backend='bitsandbytes': {bitsandbytes_name()} does not work on this device "
            f"({str(error).strip()}): use linear_backend='triton'"
        ) from error
    expected = values @ weight.float().t()
    if not torch.allclose(out, expected, rtol=0.02):  # values are rounded to one of 127 steps
        raise ModelLoadError(
            f"linear_backend='bitsandbytes': {bitsandbytes_name()} gives {out[0, 0]:g} for a product that is "
            f"{expected[0, 0]:g}; >=0.50,<0.51 is what was tested: use it, or linear_backend='triton'"
        )


def linear_bitsandbytes(x: Tensor, weight: Tensor, largest: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` with both factors in INT8.

    Args:
        x: [T, K]. It goes through float16, all that the library quantises, and so does the result: beyond 65504 a value
            is infinite.
        weight: int8 [N, K], contiguous; N and K are multiples of `SIZE_MULTIPLE`.
        largest: float32 [N], each channel's largest absolute value: 127 times its scale.
        bias: [N], added in float16.

    Returns:
        [T, N] of x's type.

    Raises:
        ModelLoadError: bitsandbytes is not installed, or T and N are beyond what it multiplies.
        ValueError: it would not multiply in INT8.
    """
    library = load_bitsandbytes()
    num_tokens, num_rows = x.shape[0], weight.shape[0]
    if any(size % SIZE_MULTIPLE for size in weight.shape):
        raise ValueError(f"bitsandbytes multiplies sizes that are multiples of {SIZE_MULTIPLE}, not {weight.shape}")
    if num_tokens * num_rows > MAX_OUTPUTS:
        raise ModelLoadError(
            f"linear_backend='bitsandbytes' computes at most {MAX_OUTPUTS} values at once, and {num_tokens} tokens "
            f"with {num_rows} each are more: use a smaller max_num_batched_tokens, or linear_backend='triton'"
        )
    if num_tokens == 0:  # a launch over nothing fails, upon which the library ends the process
        return x.new_empty(0, num_rows)
    half = x.to(torch.float16).contiguous()  # the library reads rows one behind another, whatever the strides are
    values, largest_T, _ = library.int8_vectorwise_quant(half, threshold=0.0)
    product = library.int8_linear_matmul(values, weight)
    half_bias = None if bias is None else bias.to(torch.float16)
    return library.int8_mm_dequant(product, largest_T, largest, bias=half_bias).to(x.dtype)
