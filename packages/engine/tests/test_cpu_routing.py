"""The kernels' choice of experts against the routers of the model layer by layer."""

import pytest
import torch

from deepseek_engine.kernels.cpu.library import load
from deepseek_engine.layers.routers import sigmoid_top_k, softmax_top_k, sparse_mixer
from deepseek_engine.model_config import RouterConfig
from deepseek_engine.models.fused_layers import routing_rule

library = load()
pytestmark = pytest.mark.skipif(library is None, reason="this machine's processor or build has no CPU kernels")

RULES = {
    "mixtral": RouterConfig(kind="softmax", num_experts=8, num_experts_per_tok=2, norm_topk_prob=True),
    "deepseek moe-16b": RouterConfig(kind="softmax", num_experts=64, num_experts_per_tok=6),
    "deepseek v2": RouterConfig(
        kind="softmax", num_experts=160, num_experts_per_tok=6, n_group=8, topk_group=3, routed_scaling_factor=16.0
    ),
    "more experts than the groups have": RouterConfig(
        kind="softmax", num_experts=8, num_experts_per_tok=3, n_group=4, topk_group=1
    ),
    "deepseek v3": RouterConfig(
        kind="sigmoid", num_experts=256, num_experts_per_tok=8, n_group=8, topk_group=4, norm_topk_prob=True,
        routed_scaling_factor=2.5,
    ),
    "sigmoid, one expert a group": RouterConfig(
        kind="sigmoid", num_experts=6, num_experts_per_tok=2, n_group=6, topk_group=3
    ),
    "phimoe": RouterConfig(kind="sparsemixer", num_experts=16, num_experts_per_tok=2, jitter=0.01),
    "phimoe, wide": RouterConfig(kind="sparsemixer", num_experts=16, num_experts_per_tok=2, jitter=0.4),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_experts_and_weights_are_those_of_the_router(name: str) -> None:
    rule = RULES[name]
    generator = torch.Generator().manual_seed(len(name))
    logits_TE = 2 * torch.randn(200, rule.num_experts, generator=generator)
    choice_bias_E = 0.3 * torch.randn(rule.num_experts, generator=generator)
    if rule.kind == "sigmoid":
        expected, expected_ids = sigmoid_top_k(logits_TE, choice_bias_E, rule)
    elif rule.kind == "softmax":
        expected, expected_ids = softmax_top_k(logits_TE, rule)
    else:
        expected, expected_ids = sparse_mixer(logits_TE, rule.jitter)

    weights, ids = chosen(rule, logits_TE, choice_bias_E)
    # Experts of weight 0 are as good as each other: those of other groups, where the best groups have too few.
    assert torch.equal(ids[expected != 0], expected_ids.int()[expected != 0])
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-9)


def test_a_row_of_nan_still_chooses_different_experts() -> None:
    for rule in RULES.values():
        _, ids = chosen(rule, torch.full((1, rule.num_experts), float("nan")), torch.zeros(rule.num_experts))
        assert len(set(ids[0].tolist())) == rule.num_experts_per_tok
        assert int(ids.min()) >= 0
        assert int(ids.max()) < rule.num_experts


def chosen(rule: RouterConfig, logits_TE: torch.Tensor, choice_bias_E: torch.Tensor) -> tuple[torch.Tensor, ...]:
    assert library is not None
    routing, scratch = routing_rule(rule), torch.empty(2, rule.num_experts)
    weights = torch.empty(len(logits_TE), rule.num_experts_per_tok)
    ids = torch.empty(weights.shape, dtype=torch.int32)
    for row, logits_E in enumerate(logits_TE):
        library.route_row(
            routing, choice_bias_E.data_ptr(), logits_E.data_ptr(), scratch[0].data_ptr(), scratch[1].data_ptr(),
            ids[row].data_ptr(), weights[row].data_ptr(),
        )  # fmt: skip
    return weights, ids
