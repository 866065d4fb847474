"""Activations in INT8: each group of 128 input channels of a token has a scale of its own."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_SIZE: Final = 128


def quantize_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each token's groups of channels to INT8 by their largest absolute value.

    Args:
        x: [T, K], of any float type.

    Returns:
        int8 [T, K] and float32 [T, ceil(K / 128)]: `x` is about `int8 * scale`; a group of zeros has scale 0.
    """
    num_tokens, size = x.shape
    groups = F.pad(x.double(), (0, -size % GROUP_SIZE)).view(num_tokens, -(-size // GROUP_SIZE), GROUP_SIZE)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    values = torch.where(largest > 0, groups * (127 / largest), 0.0).round().to(torch.int8)
    return values.flatten(1)[:, :size].contiguous(), (largest.squeeze(-1) / 127).float()


def dequantize_groups(values: Tensor, scales: Tensor) -> Tensor:
    """float64 [T, K] from int8 [T, K] and float32 [T, ceil(K / 128)]."""
    return values.double() * scales.double().repeat_interleave(GROUP_SIZE, dim=-1)[:, : values.shape[-1]]
