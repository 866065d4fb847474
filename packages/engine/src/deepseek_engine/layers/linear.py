"""Linear layers: weights as the checkpoint stores them, [out, in]; several projections of one input may be fused."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` for rows x, each row's result the same whatever other rows there are (in bfloat16).

    oneDNN's bfloat16 product of one row adds in another order than that of two or more, so a single row goes as two: on
    a CPU that costs nothing, since the weights are read once, and a token does not depend on its batch.
    """
    if x.shape[0] == 1 and x.dtype is torch.bfloat16:
        return F.linear(x.repeat(2, 1), weight, bias)[:1]
    return F.linear(x, weight, bias)


class Linear(nn.Module):
    """`y = x W^T + b` with rows of W from one or more checkpoint tensors, one below the other."""

    def __init__(self, in_features: int, out_features: Sequence[int], *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features = tuple(out_features)
        self.weight = nn.Parameter(torch.empty(sum(out_features), in_features, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(sum(out_features), dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., sum(out)]."""
        return linear(x, self.weight, self.bias)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The output of each fused projection."""
        return torch.split(y, list(self.out_features), dim=-1)

    def part(self, parameter: nn.Parameter, index: int) -> Tensor:
        """The rows of a parameter that belong to projection `index`, for loading."""
        start = sum(self.out_features[:index])
        return parameter.data[start : start + self.out_features[index]]
