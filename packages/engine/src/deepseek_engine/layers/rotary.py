"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split layout of Hugging Face's Llama.

T tokens, D rotated features of a head, F = D / 2 frequencies.
"""

import math

import torch
from torch import Tensor

from deepseek_engine.model_config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)


def rotary_table(config: RopeConfig, num_positions: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines and sines of every position.

    Args:
        config: base and scaling.
        num_positions: the longest context; LongRoPE chooses its factors by it.
        dtype: of the result; it is computed in float32.
        device: of the result.

    Returns:
        [num_positions, 2, D]: cosines, then sines signed so that `rotate` needs no negation.
    """
    with torch.device("cpu"):  # a model that is built on the meta device, for its shapes, has a table all the same
        frequencies_F, magnitude = _frequencies(config, num_positions)
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies_F)
    cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1).to(device, dtype)


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate [T, heads, D] by its tokens' rows of the table, [T, 2, D]."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return torch.addcmul(x * cos_sin[:, None, 0], swapped, cos_sin[:, None, 1])


def split_pairs(x: Tensor) -> Tensor:
    """Features whose rotary pairs are neighbours, as DeepSeek stores them, in the order that `rotate` takes.

    What comes out of `rotate` stays in that order: queries and keys agree, and nothing else reads it.
    """
    return torch.unflatten(x, -1, (-1, 2)).transpose(-1, -2).flatten(-2)


def _frequencies(config: RopeConfig, num_positions: int) -> tuple[Tensor, float]:
    """Turns of each pair from one position to the next, in radians, and what multiplies cosines and sines."""
    exponents_F = torch.arange(0, config.dim, 2, dtype=torch.float32) / config.dim
    frequencies_F = 1.0 / config.theta**exponents_F
    match config.scaling:
        case None:
            return frequencies_F, 1.0
        case LinearScaling(factor):
            return frequencies_F / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(frequencies_F, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(frequencies_F, scaling, config), scaling.attention_factor
        case LongRopeScaling() as scaling:
            is_long = num_positions > scaling.original_max_position_embeddings
            factors_F = torch.tensor(scaling.long_factor if is_long else scaling.short_factor)
            return frequencies_F / factors_F, scaling.long_mscale if is_long else scaling.short_mscale


def _llama3(frequencies_F: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns_F = scaling.original_max_position_embeddings * frequencies_F / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend_F = ((turns_F - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(frequencies_F / scaling.factor, frequencies_F, blend_F)


def _yarn(frequencies_F: Tensor, scaling: YarnScaling, config: RopeConfig) -> Tensor:
    """Pairs that turn `beta_fast` times or more in the trained context are kept, those below `beta_slow` slowed."""

    def pair_that_turns(times: float) -> float:
        trained = scaling.original_max_position_embeddings
        return config.dim * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    pairs_F = torch.arange(config.dim // 2, dtype=torch.float32)
    slowed_F = ((pairs_F - low) / ((high - low) or 0.001)).clamp(0.0, 1.0)
    return torch.lerp(frequencies_F, frequencies_F / scaling.factor, slowed_F)
