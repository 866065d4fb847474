import pytest
import torch
import torch.nn.functional as F

from deepseek_engine.kernels.triton import single_token as fused
from deepseek_engine.layers.routers import sigmoid_top_k, softmax_top_k
from deepseek_engine.model_config import RouterConfig
from deepseek_engine.quantization.int8 import dequantize_rows, quantize_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMATS = ["float32", "bfloat16", "int8"]


def drawn(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def weight(generator: torch.Generator, form: str, *shape: int):
    """The weight as it is stored, its scale, and its values."""
    values = drawn(generator, *shape) * shape[-1] ** -0.5
    if form == "int8":
        stored, scale = quantize_rows(values)
        return stored, scale, dequantize_rows(stored, scale)
    stored = values.to(getattr(torch, form))
    return stored, None, stored.float()


def activations(form: str) -> torch.dtype:
    return torch.float32 if form == "float32" else torch.bfloat16


def tolerance(dtype: torch.dtype) -> float:
    """Of a bfloat16 result: one rounding at the end, to nothing better than 2**-8 in the interpreter, which truncates.

    Of float32: another order of addition.
    """
    return 1e-5 if dtype is torch.float32 else 8e-3


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out.double() - expected.double()).norm() / expected.double().norm()).item()


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("rows", "features"), [(24, 64), (30, 96), (12, 2100)])
@pytest.mark.parametrize("has_norm", [True, False])
def test_norm_and_projection_of_one_token(form: str, rows: int, features: int, has_norm: bool) -> None:
    generator = torch.Generator().manual_seed(rows * features)
    dtype = activations(form)
    x, gain, bias = (drawn(generator, n, dtype=dtype) for n in (features, features, rows))
    stored, scale, values = weight(generator, form, rows, features)
    out = poisoned(rows, dtype=dtype)
    fused.norm_linear(x, stored, scale, bias, gain if has_norm else None, 1e-5, out)
    features_in = F.rms_norm(x.float(), x.shape, gain.float(), 1e-5) if has_norm else x.float()
    assert error(out, values @ features_in + bias.float()) < tolerance(dtype)


ROUTERS = {
    "mixtral": RouterConfig(kind="softmax", num_experts=16, num_experts_per_tok=2, norm_topk_prob=True),
    "six of odd": RouterConfig(kind="softmax", num_experts=11, num_experts_per_tok=6, routed_scaling_factor=1.5),
    "groups": RouterConfig(kind="softmax", num_experts=16, num_experts_per_tok=3, n_group=4, topk_group=2),
    "sigmoid": RouterConfig(
        kind="sigmoid", num_experts=32, num_experts_per_tok=4, n_group=8, topk_group=3, norm_topk_prob=True,
        routed_scaling_factor=2.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "router", "num_shared"),
    [
        ("float32", "mixtral", 0), ("bfloat16", "mixtral", 0), ("int8", "mixtral", 2), ("int8", "six of odd", 0),
        ("bfloat16", "groups", 1), ("float32", "sigmoid", 1),
    ],
)  # fmt: skip
def test_one_token_through_output_projection_router_and_experts(form: str, router: str, num_shared: int) -> None:
    generator = torch.Generator().manual_seed(len(router) + num_shared)
    config, dtype = ROUTERS[router], activations(form)
    hidden, width, attended_width = 96, 24, 64
    num_experts, places = config.num_experts, config.num_experts_per_tok + num_shared
    attended, x, gain = (drawn(generator, n, dtype=dtype) for n in (attended_width, hidden, hidden))
    output, output_scale, output_values = weight(generator, form, hidden, attended_width)
    of_router = drawn(generator, num_experts, hidden, dtype=dtype)
    choice_bias = drawn(generator, num_experts) * 0.1 if config.kind == "sigmoid" else None
    gate_up, gate_up_scale, gate_up_values = weight(generator, form, num_experts + num_shared, 2 * width, hidden)
    down, down_scale, down_values = weight(generator, form, num_experts + num_shared, hidden, width)

    assert fused.can_choose(config)
    routing = fused.RouterWeights(config, gain, 1e-5, of_router, choice_bias)
    choice = fused.make_choice(config, num_shared, DEVICE)
    middle, out = poisoned(hidden, dtype=dtype), poisoned(hidden, dtype=dtype)
    act = poisoned(places, width)
    for _ in range(2):  # the second finds the sums as the first has left them
        choice.weights.fill_(float("nan"))
        choice.ids.fill_(-1)
        fused.linear_residual(attended, output, output_scale, None, x, middle, routing, choice)
        fused.gate_up(middle, gain, 1e-5, gate_up, gate_up_scale, None, act, choice, down)
        fused.down(act, down, down_scale, None, middle, out, choice)
    ids = choice.ids

    expected_middle = x.float() + output_values @ attended.float()
    assert error(middle, expected_middle) < tolerance(dtype)
    normed = F.rms_norm(middle.float(), middle.shape, gain.float(), 1e-5)
    logits = (of_router.float() @ normed)[None]
    routed = softmax_top_k(logits, config) if choice_bias is None else sigmoid_top_k(logits, choice_bias, config)
    expected_weights, expected_ids = (each[0].tolist() for each in routed)
    assert ids.tolist() == [*expected_ids, *range(num_experts, num_experts + num_shared)]
    expected = middle.float()
    for expert, share in zip(ids.tolist(), [*expected_weights, *[1.0] * num_shared], strict=True):
        gate, up = (gate_up_values[expert] @ normed).chunk(2)
        expected = expected + share * (down_values[expert] @ (F.silu(gate) * up))
    assert error(out, expected) < tolerance(dtype)


@pytest.mark.parametrize("form", FORMATS)
def test_one_token_through_a_dense_network(form: str) -> None:
    generator = torch.Generator().manual_seed(5)
    dtype, hidden, width = activations(form), 72, 52
    x, gain, bias = (drawn(generator, n, dtype=dtype) for n in (hidden, hidden, 2 * width))
    gate_up, gate_up_scale, gate_up_values = weight(generator, form, 2 * width, hidden)
    down, down_scale, down_values = weight(generator, form, hidden, width)
    act, out = poisoned(1, width), poisoned(hidden, dtype=dtype)
    fused.gate_up(x, gain, 1e-5, gate_up, gate_up_scale, bias, act)
    fused.down(act, down, down_scale, None, x, out)
    gate, up = (gate_up_values @ F.rms_norm(x.float(), x.shape, gain.float(), 1e-5) + bias.float()).chunk(2)
    assert error(out, x.float() + down_values @ (F.silu(gate) * up)) < tolerance(dtype)
