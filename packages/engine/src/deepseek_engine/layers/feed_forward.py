"""The dense feed-forward part of a layer.

T tokens, H hidden_size, I intermediate_size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_engine.layers.linear import Linear


class GatedFeedForward(nn.Module):
    """`down(silu(gate(x)) * up(x))` (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, (intermediate_size, intermediate_size), bias=bias, dtype=dtype)
        self.down = Linear(intermediate_size, (hidden_size,), bias=bias, dtype=dtype)

    def forward(self, x_TH: Tensor) -> Tensor:
        """[T, H] to [T, H]."""
        gate_TI, up_TI = self.gate_up.split(self.gate_up(x_TH))
        return self.down(F.silu(gate_TI).mul_(up_TI))
