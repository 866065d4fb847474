"""INT8 products: weights with a scale for each output channel, activations with a scale for each token.

Both are symmetric, so a product is exact integer sums and two factors. Each token has a scale of its own, found as it
comes, so that a row's result does not depend on the other rows. A token is written in two INT8 digits to base 128, as
one would cost 3 % of perplexity: a few channels are a hundred times larger than the rest. Weights are read once for
both digits, so that decoding, which waits for memory, takes as long as with one.
Source: LLM.int8 (arXiv 2208.07339), section 2, vector-wise quantisation; the weights are those of the
"W8A8, channel and dynamic token" scheme of compressed-tensors.

M rows (tokens), N output channels, K input channels.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_INT8: Final = 127
"""Quantised values lie in -127..127. Weights of other tools may use -128 too: the product holds for them."""

DIGIT_BASE: Final = 128
"""What the first digit of an activation counts; the second counts ones, -64..64."""

_EXACT_IN_FLOAT32: Final = 2**24 // 128**2
"""Products of two INT8 values that float32 can sum in any order without rounding."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each output channel to INT8 by its largest absolute value.

    Args:
        weight: [..., K], of any float type, finite.

    Returns:
        int8 [..., K] and the scale, float32 [...]: `weight` is about `int8 * scale`. A row of zeros has scale 1.
    """
    values = weight.float()
    scale = _row_scale(values, MAX_INT8)
    return (values / scale.unsqueeze(-1)).round_().to(torch.int8), scale


def dequantize_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """float32 [..., K] from int8 [..., K] and scales [...]."""
    return weight.float() * scale.unsqueeze(-1)


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Write each token in two INT8 digits by its largest absolute value.

    Args:
        x: [M, K], of any float type.

    Returns:
        int8 [2, M, K] and the scale, float32 [M]: `x` is about `(128 * int8[0] + int8[1]) * scale`. A row with a NaN or
        an infinity has that as its scale, and so have the products made with it.
    """
    values = x.float()
    scale = _row_scale(values, MAX_INT8 * DIGIT_BASE)
    values = (values / scale.unsqueeze(-1)).round_().nan_to_num_(0.0)
    digits = torch.empty(2, *x.shape, dtype=torch.int8, device=x.device)
    high = (values / DIGIT_BASE).round_()
    digits[0] = high
    digits[1] = values.sub_(high, alpha=DIGIT_BASE)
    return digits, scale


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
    digits, scale = quantize_tokens(x)
    high, low = int8_matmul(digits.flatten(0, 1), weight).float().chunk(2)
    y = low.add_(high, alpha=DIGIT_BASE).mul_(scale.unsqueeze(-1)).mul_(weight_scale)
    if bias is not None:
        y.add_(bias)
    return y.to(x.dtype)


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """The exact product: int8 [M, K] and int8 [N, K] to int32 [M, N]."""
    if _has_exact_int8_dot_product():
        # It has no public name yet.
        return torch._int_mm(x, weight.t())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    # Without VNNI, x86's INT8 instructions saturate pairs of products at 16 bits; float32 is exact over short sums.
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32, device=x.device)
    x_parts, weight_parts = torch.split(x, _EXACT_IN_FLOAT32, 1), torch.split(weight, _EXACT_IN_FLOAT32, 1)
    for x_part, weight_part in zip(x_parts, weight_parts, strict=True):
        total += F.linear(x_part.float(), weight_part.float()).to(torch.int32)
    return total


def _row_scale(values: Tensor, largest: int) -> Tensor:
    """What one step stands for, so that the row's largest absolute value becomes `largest`."""
    scale = values.abs().amax(dim=-1).div_(largest)
    return scale.masked_fill_(scale == 0, 1.0)


def _has_exact_int8_dot_product() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni") or capabilities.get("amx_int8"))
