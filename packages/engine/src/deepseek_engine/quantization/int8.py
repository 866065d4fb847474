"""INT8 products: weights with a scale for each output channel, activations with a scale for each token.

Both are symmetric, so a product is one exact integer sum and two factors: `y = (q_x q_w^T) * scale_x * scale_w`. Each
token has a scale of its own, found as it comes, so that a row's result does not depend on the other rows.
Source: LLM.int8 (arXiv 2208.07339), section 2, vector-wise quantisation; the "W8A8, channel and dynamic token" scheme
of compressed-tensors.

M rows (tokens), N output channels, K input channels.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_INT8: Final = 127
"""Quantised values lie in -127..127. Weights of other tools may use -128 too: the product holds for them."""

_EXACT_IN_FLOAT32: Final = 2**24 // 128**2
"""Products of two INT8 values that float32 can sum in any order without rounding."""


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to INT8 by its largest absolute value.

    Args:
        values: [..., K], of any float type; weights' rows are output channels, activations' rows are tokens.

    Returns:
        int8 [..., K] and the scale, float32 [...]: `values` is about `int8 * scale`. A row of zeros has scale 1.
        A row with a NaN or an infinity has that as its scale, and so have the products made with it.
    """
    values = values.float()
    scale = values.abs().amax(dim=-1).div_(MAX_INT8)
    scale.masked_fill_(scale == 0, 1.0)
    scaled = (values / scale.unsqueeze(-1)).round_().nan_to_num_(0.0)
    return scaled.clamp_(-MAX_INT8, MAX_INT8).to(torch.int8), scale


def dequantize_rows(values: Tensor, scale: Tensor) -> Tensor:
    """float32 [..., K] from int8 [..., K] and scales [...]."""
    return values.float() * scale.unsqueeze(-1)


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` with both factors in INT8; each row's result is the same whatever other rows there are.

    Args:
        x: [M, K], float; quantised here, row by row.
        weight: int8 [N, K].
        weight_scale: float32 [N].
        bias: [N] of any float type, added in float32.

    Returns:
        [M, N] of x's type.
    """
    quantized, scale = quantize_rows(x)
    y = int8_matmul(quantized, weight).float()
    y.mul_(scale.unsqueeze(-1)).mul_(weight_scale)
    if bias is not None:
        y.add_(bias)
    return y.to(x.dtype)


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """The exact product: int8 [M, K] and int8 [N, K] to int32 [M, N]."""
    if _has_exact_int8_dot_product():
        return torch._int_mm(x, weight.t())  # noqa: SLF001 - it has no public name yet
    # Without VNNI, x86's INT8 instructions saturate pairs of products at 16 bits; float32 is exact over short sums.
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32, device=x.device)
    for x_part, weight_part in zip(x.split(_EXACT_IN_FLOAT32, 1), weight.split(_EXACT_IN_FLOAT32, 1), strict=True):
        total += F.linear(x_part.float(), weight_part.float()).to(torch.int32)
    return total


def _has_exact_int8_dot_product() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni") or capabilities.get("amx_int8"))
