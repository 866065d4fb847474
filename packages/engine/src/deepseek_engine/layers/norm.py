"""Normalisation of each token's features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_engine.model_config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to the same shape."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Normalisation by mean and variance, with a bias (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to the same shape."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def hidden_norm(config: ModelConfig, dtype: torch.dtype, *, is_final: bool = False) -> RMSNorm | LayerNorm:
    """The model's kind of norm over its hidden state."""
    kind = LayerNorm if config.norm == "layer" else RMSNorm
    return kind(config.hidden_size, config.final_norm_eps if is_final else config.norm_eps, dtype)
