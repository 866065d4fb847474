"""The mixture of experts in a layer's feed-forward part.

T tokens, H hidden_size, I width of an expert, E experts, K experts a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_engine.layers.experts import ExpertGroups, expert_linear, weighted_sum
from deepseek_engine.layers.feed_forward import GatedFeedForward
from deepseek_engine.layers.linear import QuantizableModule
from deepseek_engine.layers.routers import Router
from deepseek_engine.model_config import MoEConfig


class Experts(QuantizableModule):
    """The routed experts, each a gated network; one parameter holds a projection of all of them.

    Attributes:
        gate_up: [E, 2 I, H]; gate_up_scale: float32 [E, 2 I] if the weights are int8, else None.
        down: [E, H, I]; down_scale: float32 [E, H] likewise.
    """

    gate_up: nn.Parameter
    gate_up_scale: nn.Parameter | None
    down: nn.Parameter
    down_scale: nn.Parameter | None
    quantizable = ("gate_up", "down")

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(
            torch.empty(num_experts, 2 * intermediate_size, hidden_size, dtype=dtype), requires_grad=False
        )
        self.down = nn.Parameter(
            torch.empty(num_experts, hidden_size, intermediate_size, dtype=dtype), requires_grad=False
        )
        self.register_parameter("gate_up_scale", None)
        self.register_parameter("down_scale", None)

    def forward(self, x_TH: Tensor, weights_TK: Tensor, expert_ids_TK: Tensor) -> Tensor:
        """[T, H] to [T, H]: the weighted sum of each token's experts."""
        groups = ExpertGroups.of(expert_ids_TK, self.gate_up.shape[0])
        rows = x_TH.index_select(0, groups.order // expert_ids_TK.shape[1])
        gate, up = expert_linear(rows, self.gate_up, self.gate_up_scale, groups).chunk(2, dim=-1)
        outputs = expert_linear(F.silu(gate).mul_(up), self.down, self.down_scale, groups)
        return weighted_sum(outputs, weights_TK, groups)


class MixtureOfExperts(nn.Module):
    """Each token goes through its own few experts, and through the shared network if there is one."""

    def __init__(self, config: MoEConfig, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.router = Router(config.router, hidden_size, dtype)
        self.experts = Experts(config.router.num_experts, hidden_size, config.intermediate_size, dtype)
        self.shared = None
        if config.shared_intermediate_size:
            self.shared = GatedFeedForward(
                hidden_size, config.shared_intermediate_size, bias=config.shared_bias, dtype=dtype
            )
        self.bias = None
        if config.output_bias:
            self.bias = nn.Parameter(torch.empty(hidden_size, dtype=dtype), requires_grad=False)

    def forward(self, x_TH: Tensor) -> Tensor:
        """[T, H] to [T, H]."""
        y_TH = self.experts(x_TH, *self.router(x_TH))
        if self.shared is not None:
            y_TH = y_TH + self.shared(x_TH)
        return y_TH if self.bias is None else y_TH + self.bias
