"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split layout of Hugging Face's Llama.

T tokens, D head_dim, F = D / 2 frequencies.
"""

import math

import torch
from torch import Tensor

from deepseek_engine.model_config import ModelConfig, RopeScaling


def rotary_table(config: ModelConfig, num_positions: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines and sines of every position.

    Returns:
        [num_positions, 2, D]: cosines, then sines signed so that `rotate` needs no negation; computed in float32.
    """
    exponents_F = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies_F = 1.0 / config.rope_theta**exponents_F
    if config.rope_scaling is not None:
        frequencies_F = _scale(frequencies_F, config.rope_scaling)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies_F)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1).to(device, dtype)


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate [T, heads, D] by its tokens' rows of the table, [T, 2, D]."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return torch.addcmul(x * cos_sin[:, None, 0], swapped, cos_sin[:, None, 1])


def _scale(frequencies_F: Tensor, scaling: RopeScaling) -> Tensor:
    slowed_F = frequencies_F / scaling.factor
    if scaling.rope_type == "linear":
        return slowed_F
    wavelengths_F = 2 * math.pi / frequencies_F
    turns_F = scaling.original_max_position_embeddings / wavelengths_F
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend_F = ((turns_F - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(slowed_F, frequencies_F, blend_F)
