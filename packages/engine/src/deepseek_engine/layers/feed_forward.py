"""Feed-forward parts of a layer: a gated dense one, and a mixture of experts.

T tokens, H hidden_size, I intermediate_size, E experts, K experts a token.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_engine.layers.linear import Linear, QuantizableModule, linear
from deepseek_engine.model_config import ModelConfig


class GatedFeedForward(nn.Module):
    """`down(silu(gate(x)) * up(x))` (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up = Linear(hidden, (inner, inner), bias=config.mlp_bias, dtype=dtype)
        self.down = Linear(inner, (hidden,), bias=config.mlp_bias, dtype=dtype)

    def forward(self, x_TH: Tensor) -> Tensor:
        """[T, H] to [T, H]."""
        gate_TI, up_TI = self.gate_up.split(self.gate_up(x_TH))
        return self.down(F.silu(gate_TI).mul_(up_TI))


def select_experts(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Pick each token's experts by softmax score and renormalise the chosen scores to 1, as Mixtral does.

    Args:
        logits_TE: router outputs, one row a token.
        top_k: experts a token, from 1 to E.

    Returns:
        weights_TK, float32; expert_ids_TK, int64, likeliest first.

    Source: Mixtral of Experts (arXiv 2401.04088), section 2.1.
    """
    scores_TE = logits_TE.float().softmax(dim=-1)
    weights_TK, expert_ids_TK = scores_TE.topk(top_k, dim=-1)
    return weights_TK / weights_TK.sum(dim=-1, keepdim=True), expert_ids_TK


class MixtureOfExperts(QuantizableModule):
    """Each token goes through its top-k experts; the router stays in its own small linear, never quantised.

    Attributes:
        gate_up: [E, 2 I, H]; gate_up_scale: float32 [E, 2 I] if the weights are int8, else None.
        down: [E, H, I]; down_scale: float32 [E, H] likewise.
    """

    gate_up: nn.Parameter
    gate_up_scale: nn.Parameter | None
    down: nn.Parameter
    down_scale: nn.Parameter | None
    quantizable = ("gate_up", "down")

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        num_experts, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.router = Linear(hidden, (num_experts,), bias=False, dtype=dtype, keeps_precision=True)
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * inner, hidden, dtype=dtype), requires_grad=False)
        self.down = nn.Parameter(torch.empty(num_experts, hidden, inner, dtype=dtype), requires_grad=False)
        self.register_parameter("gate_up_scale", None)
        self.register_parameter("down_scale", None)

    def forward(self, x_TH: Tensor) -> Tensor:
        """[T, H] to [T, H]; tokens are grouped by expert, so that each expert's weights are read once a step."""
        weights_TK, expert_ids_TK = select_experts(self.router(x_TH), self.top_k)
        expert_of_row = expert_ids_TK.flatten()
        order = expert_of_row.argsort(stable=True)
        rows_of_expert = cast("list[int]", torch.bincount(expert_of_row, minlength=self.gate_up.shape[0]).tolist())
        grouped = x_TH.index_select(0, order // self.top_k)
        outputs = torch.empty_like(grouped)
        start = 0
        for expert, num_rows in enumerate(rows_of_expert):
            if num_rows:
                rows = slice(start, start + num_rows)
                outputs[order[rows]] = self._expert(expert, grouped[rows])
                start += num_rows
        # Reduced by reshape and sum, not index_add: the order of addition is the same in every run.
        weighted = outputs.view(*expert_ids_TK.shape, -1) * weights_TK[..., None].to(outputs.dtype)
        return weighted.sum(dim=1)

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        gate_up_scale = None if self.gate_up_scale is None else self.gate_up_scale[expert]
        down_scale = None if self.down_scale is None else self.down_scale[expert]
        gate, up = linear(x, self.gate_up[expert], scale=gate_up_scale).chunk(2, dim=-1)
        return linear(F.silu(gate).mul_(up), self.down[expert], scale=down_scale)
