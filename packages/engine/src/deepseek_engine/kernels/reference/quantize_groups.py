"""Activations in INT8 by groups of channels, straight from the definition. See kernels/triton/quantize_groups.py."""

import torch
from torch import Tensor

GROUP_SIZE = 128


def quantize_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each group of 128 channels to INT8 by its largest absolute value.

    Args:
        x: [rows, H]; the last group may be shorter.

    Returns:
        int8 [rows, H] and float32 [rows, groups].
    """
    values: list[Tensor] = []
    scales: list[Tensor] = []
    for group in torch.split(x.float(), GROUP_SIZE, dim=1):
        scale = group.abs().amax(dim=1) / 127
        scale = scale.masked_fill(scale == 0, 1.0)
        values.append((group / scale[:, None]).round().to(torch.int8))
        scales.append(scale)
    return torch.cat(values, 1), torch.stack(scales, 1)


def dequantize_groups(values: Tensor, scales: Tensor) -> Tensor:
    """float64 [rows, H] from what `quantize_groups` returns."""
    return values.double() * scales.double().repeat_interleave(GROUP_SIZE, 1)[:, : values.shape[1]]
