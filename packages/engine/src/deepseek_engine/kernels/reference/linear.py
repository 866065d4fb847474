"""Linear layers in float64. T tokens, N channels out, K channels in."""

from torch import Tensor

from deepseek_engine.kernels.reference.quantize_groups import dequantize_groups


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` of float tensors, float64 [T, N]."""
    out = x.double() @ weight.double().t()
    return out if bias is None else out + bias.double()


def linear_w8a16(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same with a weight int8 [N, K] and its scale [N]."""
    return linear_bf16(x, weight.double() * scale.double()[:, None], bias)


def linear_w8a8(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same with x in INT8 groups of 128 channels and their scales."""
    return linear_w8a16(dequantize_groups(x, x_scale), weight, scale, bias)
