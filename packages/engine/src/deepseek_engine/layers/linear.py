"""Linear layers: weights as the checkpoint stores them, [out, in]; several projections of one input may be fused."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """`y = x W^T + b` with rows of W from one or more checkpoint tensors, one below the other."""

    def __init__(self, in_features: int, out_features: Sequence[int], *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features = tuple(out_features)
        self.weight = nn.Parameter(torch.empty(sum(out_features), in_features, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(sum(out_features), dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., sum(out)]."""
        return F.linear(x, self.weight, self.bias)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The output of each fused projection."""
        return torch.split(y, list(self.out_features), dim=-1)

    def part(self, parameter: nn.Parameter, index: int) -> Tensor:
        """The rows of a parameter that belong to projection `index`, for loading."""
        start = sum(self.out_features[:index])
        return parameter.data[start : start + self.out_features[index]]
