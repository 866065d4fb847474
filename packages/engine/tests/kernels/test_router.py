"""The fused routers against a choice made one token at a time in float64."""

import pytest
import torch
from torch import Tensor

from deepseek_engine.kernels.reference import norm as reference_norm
from deepseek_engine.kernels.reference import router as reference
from deepseek_engine.kernels.triton import router
from deepseek_engine.kernels.triton.router import add_rms_norm_route, route
from deepseek_engine.layers.routers import sigmoid_top_k, softmax_top_k
from deepseek_engine.model_config import RouterConfig

ON_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if ON_DEVICE else "cpu"
EPS = 1e-5
RULES = {
    "seed": RouterConfig(kind="softmax", num_experts=16, num_experts_per_tok=2, norm_topk_prob=True),
    "deepseek v2 lite": RouterConfig(kind="softmax", num_experts=64, num_experts_per_tok=6),
    "deepseek v2": RouterConfig(
        kind="softmax", num_experts=160, num_experts_per_tok=6, n_group=8, topk_group=3, routed_scaling_factor=16.0
    ),
    "deepseek v3": RouterConfig(
        kind="sigmoid", num_experts=256, num_experts_per_tok=8, n_group=8, topk_group=4, norm_topk_prob=True,
        routed_scaling_factor=2.5,
    ),
    "more experts than the group has": RouterConfig(
        kind="softmax", num_experts=8, num_experts_per_tok=3, n_group=4, topk_group=1
    ),
    "one expert a group": RouterConfig(kind="sigmoid", num_experts=6, num_experts_per_tok=2, n_group=6, topk_group=3),
    "a dense network": RouterConfig(kind="softmax", num_experts=1, num_experts_per_tok=1),
}  # fmt: skip
SIZES = [(3, 72)] + [(1, 2048), (33, 576), (3000, 2048)] * ON_DEVICE
# The interpreter takes half a second for a program of 256 experts, so it does not run all of them in both types.
CASES = [(name, torch.float32) for name in RULES] + [
    (name, torch.bfloat16) for name in RULES if ON_DEVICE or name == "seed"
]

# Both multiply the same rounded operands and sum in float32, but softmax turns an error of the logits into one of the
# weights as large as the logits: 1e-6 of logits of size 10.
WEIGHT_TOLERANCE = 1e-4


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def choice_bias_of(rule: RouterConfig) -> Tensor | None:
    return 0.3 * drawn(9, rule.num_experts) if rule.kind == "sigmoid" else None


def assert_same_choice(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], num_shared: int) -> None:
    """Ids may differ where two experts are as good as equal: in one of 500 tokens."""
    ids, weights = found
    is_same = (ids == expected[0]).all(dim=1)
    assert float((~is_same).float().mean()) <= 0.002
    torch.testing.assert_close(
        weights[is_same].double(), expected[1][is_same], rtol=WEIGHT_TOLERANCE, atol=WEIGHT_TOLERANCE / 10
    )
    assert ids.dtype is torch.int32
    if num_shared:
        assert torch.equal(weights[:, -num_shared:], torch.ones_like(weights[:, -num_shared:]))


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_choice_of_rows(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    rule = RULES[name]
    x = drawn(1, *shape, dtype=torch.bfloat16)
    weight = (drawn(2, rule.num_experts, shape[1]) / 8).to(dtype)
    bias = choice_bias_of(rule)
    expected = reference.route(x, weight, rule, choice_bias=bias, num_shared=2)
    assert_same_choice(route(x, weight, rule, choice_bias=bias, num_shared=2), expected, 2)


@pytest.mark.parametrize("num_tokens", [1, 3, 32, 64] if ON_DEVICE else [2])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_norm_and_choice_in_one_launch(name: str, num_tokens: int, dtype: torch.dtype) -> None:
    rule, size, num_shared = RULES[name], 2048 if ON_DEVICE else 72, 1
    x = drawn(1, num_tokens, size, dtype=dtype)
    rows = drawn(2, 2 * num_tokens, size, dtype=dtype)
    norm_weight = drawn(3, size, dtype=dtype)
    weight = (drawn(4, rule.num_experts, size) / 8).to(dtype)
    choice_bias = choice_bias_of(rule)
    residual, _ = reference_norm.add_rms_norm(x, norm_weight, EPS, rows=rows)
    for _ in range(2):  # the second finds the counters as the first left them
        stream = x.clone()
        normed, ids, weights = add_rms_norm_route(
            stream, norm_weight, EPS, weight, rule, rows=rows, residual=stream, wants_int8=True,
            choice_bias=choice_bias, num_shared=num_shared,
        )  # fmt: skip
        assert normed.values is not None
        assert normed.int8 is not None
        torch.testing.assert_close(stream, residual, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-5)
        # The choice is checked on the kernel's own rows: another rounding of a row is another choice now and then.
        expected = reference.route(normed.values, weight, rule, choice_bias=choice_bias, num_shared=num_shared)
        assert_same_choice((ids, weights), expected, num_shared)


def test_splitting_the_experts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, size = RULES["deepseek v3"], 64
    x, norm_weight, weight = drawn(1, 1, size), drawn(2, size), drawn(3, rule.num_experts, size) / 8
    bias = choice_bias_of(rule)
    results = []
    for split in ((64, 1), (32, 3)):
        monkeypatch.setattr(router, "choose_split", lambda *_, split=split: split)
        _, ids, weights = add_rms_norm_route(x, norm_weight, EPS, weight, rule, choice_bias=bias)
        results.append((ids, weights))
    for ids, weights in results[1:]:
        assert torch.equal(ids, results[0][0])
        torch.testing.assert_close(weights, results[0][1])


@pytest.mark.parametrize("name", ["seed", "deepseek v2", "deepseek v3"])
def test_the_reference_is_the_router_of_the_layers(name: str) -> None:
    rule = RULES[name]
    x, weight = drawn(1, 50, 64), drawn(2, rule.num_experts, 64) / 8
    logits, bias = x @ weight.t(), choice_bias_of(rule)
    weights, ids = softmax_top_k(logits, rule) if bias is None else sigmoid_top_k(logits, bias, rule)
    assert_same_choice((ids.int(), weights), reference.route(x, weight, rule, choice_bias=bias), 0)


def test_the_lower_expert_wins_a_tie() -> None:
    x, weight = torch.ones(1, 64, device=DEVICE), torch.ones(8, 64, device=DEVICE)
    rule = RouterConfig(kind="softmax", num_experts=8, num_experts_per_tok=3)
    assert route(x, weight, rule)[0].tolist() == [[0, 1, 2]]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the arithmetic that the interpreter uses
@pytest.mark.parametrize("name", ["seed", "one expert a group", "deepseek v2"])
def test_a_row_of_nans_names_experts_that_exist(name: str) -> None:
    rule = RULES[name]
    x, weight = drawn(1, 3, 72), drawn(2, rule.num_experts, 72)
    x[1] = float("nan")
    ids, _ = route(x, weight, rule, choice_bias=choice_bias_of(rule))
    assert int(ids.min()) >= 0
    assert int(ids.max()) < rule.num_experts


def test_no_tokens_are_fine() -> None:
    ids, weights = route(torch.empty(0, 64), torch.empty(16, 64), RULES["seed"], num_shared=1)
    assert ids.shape == weights.shape == (0, 3)


def test_what_no_kernel_does_is_refused() -> None:
    mixer = RouterConfig(kind="sparsemixer", num_experts=16, num_experts_per_tok=2)
    with pytest.raises(NotImplementedError, match="sparsemixer has no kernel"):
        route(torch.empty(1, 64), torch.empty(16, 64), mixer)
    nine = RouterConfig(kind="softmax", num_experts=16, num_experts_per_tok=9)
    with pytest.raises(ValueError, match="num_experts_per_tok=9 exceeds the kernel's 8"):
        route(torch.empty(1, 64), torch.empty(16, 64), nine)
    with pytest.raises(ValueError, match="65 tokens exceed 64"):
        add_rms_norm_route(torch.empty(65, 64), torch.empty(64), EPS, torch.empty(16, 64), RULES["seed"])
