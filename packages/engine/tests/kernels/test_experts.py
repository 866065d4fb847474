"""The experts' products, by every method and in every format."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deepseek_engine.kernels.reference import experts as reference
from deepseek_engine.kernels.reference.quantize_groups import dequantize_groups
from deepseek_engine.kernels.triton.experts import (
    Plan,
    Routing,
    down,
    down_int8,
    gate_up,
    gate_up_int8,
    route,
)
from deepseek_engine.kernels.triton.quantize_groups import QuantizedRows, quantize_groups
from deepseek_engine.quantization.int8 import quantize_rows

IS_NATIVE = torch.cuda.is_available()
DEVICE = "cuda" if IS_NATIVE else "cpu"

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
"""Of ||out - reference|| / ||reference||, on the same operands: float32 sums in another order; rounding the result to
bfloat16 costs 2^-9 / sqrt(3) = 1.1e-3, and the interpreter rounds some operands' products."""

PLANS = [Plan("stream"), Plan("stream", 16), Plan("stream", 32), Plan("tiles", 64)]
NATIVE_PLANS = [Plan("stream", 64), Plan("stream", 128), Plan("tiles", 128)]

FORMATS = ["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class Case:
    """A layer's experts, and tokens routed to them."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    gate_up: Tensor
    gate_up_scale: Tensor | None
    down: Tensor
    down_scale: Tensor | None

    @property
    def num_experts(self) -> int:
        return self.gate_up.shape[0]

    def route(self, plan: Plan | None, x_dtype: torch.dtype | None = None) -> Routing:
        return route(self.ids, self.num_experts, x_dtype or self.x.dtype, self.gate_up.dtype, plan)


def make_case(
    weight_format: str, num_tokens: int, top_k: int, num_experts: int, hidden: int, intermediate: int, seed: int = 0
) -> Case:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    dtype = torch.float32 if weight_format == "float32" else torch.bfloat16

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE)

    # The last expert is shared by all tokens, the first is chosen by none.
    chosen = torch.rand(num_tokens, num_experts, generator=generator, device=DEVICE)
    chosen[:, 0], chosen[:, -1] = -1, 2
    ids = chosen.argsort(1, descending=True)[:, :top_k].int().contiguous()
    x, weights = draw(num_tokens, hidden).to(dtype), torch.rand(num_tokens, top_k, generator=generator, device=DEVICE)
    first, second = draw(num_experts, 2 * intermediate, hidden) / hidden**0.5, draw(num_experts, hidden, intermediate)
    scales: tuple[Tensor | None, Tensor | None] = None, None
    if weight_format == "int8":
        (first, first_scale), (second, second_scale) = quantize_rows(first), quantize_rows(second)
        scales = first_scale, second_scale
    else:
        first, second = first.to(dtype), second.to(dtype)
    return Case(x, ids, weights, first, scales[0], second, scales[1])


def assert_close(out: Tensor, expected: Tensor, tolerance: float) -> None:
    error = torch.linalg.vector_norm(out.double() - expected) / torch.linalg.vector_norm(expected)
    assert error < tolerance, f"error {error:.2e}"  # false for a NaN too


def check(case: Case, plan: Plan | None) -> None:
    routing = case.route(plan)
    act = torch.full((case.ids.numel(), case.down.shape[2]), torch.nan, dtype=case.x.dtype, device=DEVICE)
    assert gate_up(case.x, case.gate_up, case.gate_up_scale, routing, act) is act
    tolerance = TOLERANCE[case.x.dtype]
    assert_close(act, reference.gate_up(case.x, case.gate_up, case.gate_up_scale, case.ids), tolerance)
    rows = torch.full((case.ids.numel(), case.x.shape[1]), torch.nan, dtype=case.x.dtype, device=DEVICE)
    assert down(act, case.down, case.down_scale, case.weights, routing, rows) is rows
    assert_close(rows, reference.down(act, case.down, case.down_scale, case.weights, case.ids), tolerance)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.method}-{plan.block_size}")
@pytest.mark.parametrize("weight_format", FORMATS)
def test_every_method_takes_every_format_and_odd_sizes(weight_format: str, plan: Plan) -> None:
    if weight_format == "int8" and plan.method == "tiles":
        pytest.skip("int8 weights as tiles take int8 activations: see below")
    check(make_case(weight_format, 19, 2, 3, 96, 80), plan)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_few_tokens_as_vectors(weight_format: str) -> None:
    check(make_case(weight_format, 2, 2, 4, 40, 24), Plan("vectors"))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.method}-{plan.block_size}")
def test_one_token(plan: Plan) -> None:
    check(make_case("bfloat16", 1, 2, 3, 80, 48), plan)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.method}-{plan.block_size}")
def test_all_tokens_on_one_expert(plan: Plan) -> None:
    check(make_case("bfloat16", 35, 1, 3, 64, 64), plan)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("num_tokens", [1, 20])
def test_the_plan_for_a_shape_computes_it(num_tokens: int, weight_format: str) -> None:
    check(make_case(weight_format, num_tokens, 3, 5, 32, 32), None)


@pytest.mark.parametrize("plan", [Plan("stream"), Plan("stream", 16), Plan("tiles", 64), Plan("tiles", 128)], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 21])
def test_int8_activations_are_multiplied_exactly_and_their_results_quantised(num_tokens: int, plan: Plan) -> None:
    case = make_case("int8", num_tokens, 2, 3, 160, 224)
    assert case.gate_up_scale is not None
    assert case.down_scale is not None
    routing = case.route(plan, torch.int8)
    x = quantize_groups(case.x)
    act = QuantizedRows.empty(case.ids.numel(), 224, torch.device(DEVICE))
    act.scales.fill_(torch.nan)
    act.values.fill_(-128)
    assert gate_up_int8(x, case.gate_up, case.gate_up_scale, routing, act) is act
    expected = reference.gate_up_int8((x.values, x.scales), case.gate_up, case.gate_up_scale, case.ids)
    # The products are exact and the scales float32, so only what lies at a half may be rounded the other way.
    torch.testing.assert_close(act.scales, expected[1], rtol=1e-4, atol=0)
    assert (act.values.int() - expected[0].int()).abs().max() <= 1
    assert_close(dequantize_groups(act.values, act.scales), dequantize_groups(*expected), 1e-3)
    rows = torch.full((case.ids.numel(), 160), torch.nan, device=DEVICE)
    assert down_int8(act, case.down, case.down_scale, case.weights, routing, rows) is rows
    quantised = act.values, act.scales
    assert_close(rows, reference.down_int8(quantised, case.down, case.down_scale, case.weights, case.ids), 1e-5)


def test_int8_activations_cost_little_beside_bfloat16() -> None:
    case = make_case("int8", 24, 2, 3, 256, 256)
    assert case.gate_up_scale is not None
    assert case.down_scale is not None
    routing = case.route(None, torch.int8)
    case.x[:, 7] *= 10  # an outlier channel: it spoils its own group only
    act = gate_up_int8(quantize_groups(case.x), case.gate_up, case.gate_up_scale, routing)
    rows = down_int8(act, case.down, case.down_scale, case.weights, routing)
    exact = reference.gate_up(case.x, case.gate_up, case.gate_up_scale, case.ids)
    # Rounding to steps of max / 127 over groups of 128 normal values is about 0.6 %, in two products.
    assert_close(rows, reference.down(exact, case.down, case.down_scale, case.weights, case.ids), 3e-2)


def test_types_that_do_not_go_together_are_refused() -> None:
    case = make_case("int8", 2, 1, 2, 32, 32)
    with pytest.raises(ValueError, match="without a scale"):
        gate_up(case.x, case.gate_up, None, case.route(None))
    with pytest.raises(ValueError, match=r"activations are torch\.float16"):
        gate_up(case.x.half(), case.gate_up, case.gate_up_scale, case.route(None))


@pytest.mark.skipif(not IS_NATIVE, reason="slow in the interpreter")
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("num_tokens", [1, 7, 32, 64, 65, 256, 3000])
@pytest.mark.parametrize(("top_k", "num_experts", "hidden"), [(2, 16, 2048), (8, 66, 2048), (1, 1, 576)])
def test_models_shapes(weight_format: str, num_tokens: int, top_k: int, num_experts: int, hidden: int) -> None:
    check(make_case(weight_format, num_tokens, top_k, num_experts, hidden, 1408), None)


@pytest.mark.skipif(not IS_NATIVE, reason="slow in the interpreter")
@pytest.mark.parametrize("plan", PLANS[1:] + NATIVE_PLANS, ids=str)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_every_method_takes_a_models_shape(weight_format: str, plan: Plan) -> None:
    if weight_format == "int8" and plan.method == "tiles":
        pytest.skip("int8 weights as tiles take int8 activations: see below")
    check(make_case(weight_format, 300, 2, 16, 2048, 1408), plan)


@pytest.mark.skipif(not IS_NATIVE, reason="slow in the interpreter")
@pytest.mark.parametrize("num_tokens", [1, 32, 256, 3000])
@pytest.mark.parametrize(("top_k", "num_experts"), [(2, 16), (8, 66)])
def test_models_shapes_in_int8_with_int8_activations(num_tokens: int, top_k: int, num_experts: int) -> None:
    case = make_case("int8", num_tokens, top_k, num_experts, 2048, 1408)
    assert case.gate_up_scale is not None
    assert case.down_scale is not None
    for plan in (None, Plan("stream", 32), Plan("stream", 64), Plan("tiles", 64), Plan("tiles", 128)):
        routing = case.route(plan, torch.int8)
        x = quantize_groups(case.x)
        act = gate_up_int8(x, case.gate_up, case.gate_up_scale, routing)
        expected = reference.gate_up_int8((x.values, x.scales), case.gate_up, case.gate_up_scale, case.ids)
        assert_close(dequantize_groups(act.values, act.scales), dequantize_groups(*expected), 1e-3)
        rows = down_int8(act, case.down, case.down_scale, case.weights, routing)
        quantised = act.values, act.scales
        expected_rows = reference.down_int8(quantised, case.down, case.down_scale, case.weights, case.ids)
        assert_close(rows, expected_rows, TOLERANCE[torch.bfloat16])
