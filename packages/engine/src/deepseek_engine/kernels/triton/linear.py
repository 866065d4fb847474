"""Dense linear layers of the GPU decoder: which kernel serves a shape, and the launchers for few tokens.

T tokens, N channels out, K channels in. `linear_int8.linear_w8a8` multiplies INT8 with INT8, for many tokens.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_engine.kernels.triton.linear_few_rows import MAX_MULTIPLIED_ROWS, multiply, stream

LinearFormat = Literal["float32", "bfloat16", "int8"]
"""How the weight is stored; activations are float32 with float32 weights, otherwise bfloat16."""

LinearKernel = Literal["multiply", "stream", "w8a8", "library"]
"""Multiplied in registers; streamed through the tensor cores (INT8 as W8A16); INT8 x INT8; PyTorch's."""

MAX_STREAMED_TOKENS: dict[LinearFormat, int] = {"float32": MAX_MULTIPLIED_ROWS, "bfloat16": 64, "int8": 63}
"""Beyond these the product no longer waits for its weight, and larger tiles than a stream's are faster."""


def choose_linear(num_tokens: int, weight_format: LinearFormat) -> LinearKernel:
    """The kernel that serves a product of T tokens; N and K do not matter so far.

    INT8 is W8A16 up to `MAX_STREAMED_TOKENS` and W8A8 beyond: there the caller hands over activations in INT8, which
    `add_rms_norm` and `silu_mul` write.
    """
    if num_tokens <= MAX_MULTIPLIED_ROWS:
        return "multiply"
    if num_tokens <= MAX_STREAMED_TOKENS[weight_format]:
        return "stream"
    return "w8a8" if weight_format == "int8" else "library"


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` with float weights, summed in float32; float32 is IEEE throughout.

    Args:
        x: [T, K], bfloat16 or float32.
        weight: [N, K], of x's type.
        bias: [N].

    Returns:
        [T, N] of x's type.
    """
    weight_format: LinearFormat = "float32" if weight.dtype is torch.float32 else "bfloat16"
    if choose_linear(x.shape[0], weight_format) == "library":
        return F.linear(x, weight, bias)
    return _run(x, weight, None, bias)


def linear_w8a16(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` with INT8 weights that become bfloat16, exactly, on their way into the product.

    Args:
        x: [T, K], bfloat16 or float32; meant for few tokens, right for any number.
        weight: int8 [N, K].
        scale: float32 [N].
        bias: [N].

    Returns:
        [T, N] of x's type.
    """
    return _run(x, weight, scale, bias)


def _run(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    if x.shape[0] == 0:
        return out
    run = multiply if x.shape[0] <= MAX_MULTIPLIED_ROWS else stream
    run(x, weight, scale, bias, out)
    return out
