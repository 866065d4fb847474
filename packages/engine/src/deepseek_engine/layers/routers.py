"""Routers: which experts each token goes through, and with what weights.

T tokens, H hidden_size, E experts, K experts a token.
"""

import torch
from torch import Tensor, nn

from deepseek_engine.layers.linear import linear
from deepseek_engine.model_config import RouterConfig

SMALLEST_SUM = 1e-20
"""Added before a division, so that weights that are all 0 stay 0."""


class Router(nn.Module):
    """One small linear layer and the rule that chooses from its logits.

    Its weights are never quantized: a choice that tips over changes a token's whole path. `choice_bias` is there for
    the sigmoid kind only (`e_score_correction_bias`), in float32.
    """

    def __init__(self, config: RouterConfig, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        weight_dtype = torch.float32 if config.in_float32 else dtype
        self.weight = nn.Parameter(
            torch.empty(config.num_experts, hidden_size, dtype=weight_dtype), requires_grad=False
        )
        self.choice_bias = None
        if config.kind == "sigmoid":
            self.choice_bias = nn.Parameter(torch.empty(config.num_experts, dtype=torch.float32), requires_grad=False)

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """weights_TK, float32, and expert_ids_TK, int64, of each token."""
        logits_TE = linear(x_TH.to(self.weight.dtype), self.weight).float()
        if self.config.kind == "sparsemixer":
            return sparse_mixer(logits_TE, self.config.jitter)
        if self.choice_bias is not None:
            return sigmoid_top_k(logits_TE, self.choice_bias, self.config)
        return softmax_top_k(logits_TE, self.config)


def softmax_top_k(logits_TE: Tensor, config: RouterConfig) -> tuple[Tensor, Tensor]:
    """The likeliest experts, of the groups whose best expert is likeliest where there are groups.

    Args:
        logits_TE: float32, one row a token.
        config: how many experts, of how many groups, and what is done with their scores.

    Returns:
        weights_TK, float32; expert_ids_TK, int64.

    Source: Mixtral (arXiv 2401.04088), section 2.1; groups: DeepSeek-V2 (arXiv 2405.04434), section 2.2.2.
    """
    scores_TE = logits_TE.softmax(dim=-1)
    if config.n_group > 1:
        best_TG = torch.unflatten(scores_TE, -1, (config.n_group, -1)).amax(dim=-1)
        scores_TE = scores_TE.masked_fill(~_in_best_groups(best_TG, config), 0.0)
    weights_TK, expert_ids_TK = scores_TE.topk(config.num_experts_per_tok, dim=-1)
    return _scaled(weights_TK, config), expert_ids_TK


def sigmoid_top_k(logits_TE: Tensor, choice_bias_E: Tensor, config: RouterConfig) -> tuple[Tensor, Tensor]:
    """Independent scores; the bias that balances experts takes part in the choice but not in the weights.

    A group's score is the sum of its two best biased scores. Arguments and result as of `softmax_top_k`.
    Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2.
    """
    scores_TE = logits_TE.sigmoid()
    biased_TE = scores_TE + choice_bias_E
    if config.n_group > 1:
        of_groups = torch.unflatten(biased_TE, -1, (config.n_group, -1))
        two_best_TG = of_groups.topk(min(2, of_groups.shape[-1]), dim=-1).values.sum(dim=-1)
        biased_TE = biased_TE.masked_fill(~_in_best_groups(two_best_TG, config), float("-inf"))
    expert_ids_TK = biased_TE.topk(config.num_experts_per_tok, dim=-1).indices
    return _scaled(scores_TE.gather(-1, expert_ids_TK), config), expert_ids_TK


def sparse_mixer(logits_TE: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Two experts in turn, each weighted by a softmax over those that come close to it; weights do not sum to 1.

    Args:
        logits_TE: float32, one row a token.
        jitter: an expert is left out of the softmax if it is further below than twice this share.

    Returns:
        weights_T2, float32; expert_ids_T2, int64.

    Source: SparseMixer-v2 (arXiv 2409.12136), at inference, as Phi-3.5-MoE computes it.
    """
    remaining_TE = logits_TE
    weights: list[Tensor] = []
    chosen: list[Tensor] = []
    for _ in range(2):
        best_T1, id_T1 = remaining_TE.max(dim=-1, keepdim=True)
        # Measured on all logits, the first choice's too: that one is removed by its -inf.
        distance_TE = (best_T1 - logits_TE) / logits_TE.abs().clamp(min=best_T1)
        close_TE = remaining_TE.masked_fill(distance_TE > 2 * jitter, float("-inf"))
        weights.append(close_TE.softmax(dim=-1).gather(-1, id_T1))
        chosen.append(id_T1)
        remaining_TE = remaining_TE.scatter(-1, id_T1, float("-inf"))
    return torch.cat(weights, dim=-1), torch.cat(chosen, dim=-1)


def _in_best_groups(scores_TG: Tensor, config: RouterConfig) -> Tensor:
    """Whether each expert belongs to one of its token's best groups, [T, E]."""
    best = scores_TG.topk(config.topk_group, dim=-1).indices
    is_kept_TG = torch.zeros_like(scores_TG, dtype=torch.bool).scatter_(-1, best, value=True)
    return is_kept_TG.repeat_interleave(config.num_experts // config.n_group, dim=-1)


def _scaled(weights_TK: Tensor, config: RouterConfig) -> Tensor:
    if config.norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + SMALLEST_SUM)
    return weights_TK * config.routed_scaling_factor if config.routed_scaling_factor != 1.0 else weights_TK
