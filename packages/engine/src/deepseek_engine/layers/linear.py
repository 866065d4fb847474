"""Linear layers: weights as the checkpoint stores them, [out, in]; several projections of one input may be fused."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_engine.quantization.int8 import int8_linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """`x W^T + b` for rows x, each row's result the same whatever other rows there are (in bfloat16 and INT8).

    Args:
        x: [rows, in].
        weight: [out, in], of x's type, or int8 with its scale.
        bias: [out].
        scale: float32 [out] of an int8 weight.

    oneDNN's bfloat16 product of one row adds in another order than that of two or more, so a single row goes as two: on
    a CPU that costs nothing, since the weights are read once, and a token does not depend on its batch.
    """
    if scale is not None:
        return int8_linear(x, weight, scale, bias)
    if x.shape[0] == 1 and x.dtype is torch.bfloat16:
        return F.linear(x.repeat(2, 1), weight, bias)[:1]
    return F.linear(x, weight, bias)


class QuantizableModule(nn.Module):
    """A module with weights [..., out, in] that may be stored as INT8, with a float32 scale for each output channel.

    `quantizable` names those parameters; the scale of `weight` is `weight_scale`, None as long as it is not INT8.
    """

    quantizable: tuple[str, ...] = ()

    def store_as_int8(self) -> None:
        """Replace the quantizable parameters by empty INT8 ones with scales, for loading."""
        for name in self.quantizable:
            weight = getattr(self, name)
            self.register_parameter(name, _empty(weight.shape, torch.int8, weight.device))
            self.register_parameter(f"{name}_scale", _empty(weight.shape[:-1], torch.float32, weight.device))


class Linear(QuantizableModule):
    """`y = x W^T + b` with rows of W from one or more checkpoint tensors, one below the other.

    Attributes:
        weight: [out, in], of the compute type or int8.
        weight_scale: float32 [out] if the weight is int8, else None.
        quantizable: empty if the layer keeps its precision, as routers and heads do.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        *,
        bias: bool,
        dtype: torch.dtype,
        keeps_precision: bool = False,
    ) -> None:
        super().__init__()
        self.out_features = tuple(out_features)
        self.quantizable = () if keeps_precision else ("weight",)
        self.weight = nn.Parameter(torch.empty(sum(out_features), in_features, dtype=dtype), requires_grad=False)
        self.register_parameter("weight_scale", None)
        self.bias = nn.Parameter(torch.zeros(sum(out_features), dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in] to [rows, sum(out)]."""
        return linear(x, self.weight, self.bias, self.weight_scale)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The output of each fused projection."""
        return torch.split(y, list(self.out_features), dim=-1)


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(tuple(shape), dtype=dtype, device=device), requires_grad=False)
