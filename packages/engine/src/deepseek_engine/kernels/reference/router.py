"""Routing, one token at a time, in float64. T tokens, H hidden_size, E experts, K experts a token, S shared experts."""

from typing import cast

import torch
from torch import Tensor

from deepseek_engine.model_config import RouterConfig


def route(
    x: Tensor, weight: Tensor, rule: RouterConfig, *, choice_bias: Tensor | None = None, num_shared: int = 0
) -> tuple[Tensor, Tensor]:
    """Each token's experts and their weights; arguments as of the kernel.

    Returns:
        ids, int32, and weights, float64, both [T, K + S]; the lower expert first on a tie.
    """
    logits_TE = x.to(weight.dtype).double() @ weight.double().t()
    biases = torch.zeros(rule.num_experts) if choice_bias is None else choice_bias
    rows = [_choose(logits, rule, biases.double()) for logits in logits_TE]
    shared = [(rule.num_experts + index, 1.0) for index in range(num_shared)]
    num_outputs = rule.num_experts_per_tok + num_shared
    ids = torch.tensor([[expert for expert, _ in row + shared] for row in rows], dtype=torch.int32)
    weights = torch.tensor([[score for _, score in row + shared] for row in rows], dtype=torch.float64)
    return ids.view(-1, num_outputs).to(x.device), weights.view(-1, num_outputs).to(x.device)


def _choose(logits: Tensor, rule: RouterConfig, choice_bias: Tensor) -> list[tuple[int, float]]:
    """One token's experts, best first, with their weights."""
    of_logits = logits.sigmoid() if rule.kind == "sigmoid" else logits.softmax(dim=0)
    scores = cast("list[float]", of_logits.tolist())
    ranked = cast("list[float]", (of_logits + choice_bias.to(of_logits.device)).tolist())
    size = rule.num_experts // rule.n_group
    groups = [ranked[start : start + size] for start in range(0, rule.num_experts, size)]
    num_counted = 2 if rule.kind == "sigmoid" else 1
    group_scores = [sum(sorted(group)[-num_counted:]) for group in groups]
    kept = sorted(range(rule.n_group), key=lambda group: (-group_scores[group], group))[: rule.topk_group]
    # Experts of other groups follow those of the kept ones, if these are too few; a softmax then weighs them 0.
    order = sorted(range(rule.num_experts), key=lambda e: (e // size not in kept, -ranked[e] * (e // size in kept), e))
    chosen = order[: rule.num_experts_per_tok]
    weights = [scores[e] if rule.kind == "sigmoid" or e // size in kept else 0.0 for e in chosen]
    if rule.norm_topk_prob:
        total = sum(weights) + 1e-20
        weights = [weight / total for weight in weights]
    return [(e, weight * rule.routed_scaling_factor) for e, weight in zip(chosen, weights, strict=True)]
