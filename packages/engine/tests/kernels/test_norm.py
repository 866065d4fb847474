"""Residual addition, normalisation and INT8 groups against float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_engine.kernels.reference import norm as reference
from deepseek_engine.kernels.reference.quantize_groups import dequantize_groups, quantize_groups
from deepseek_engine.kernels.triton.norm import add_rms_norm

ON_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if ON_DEVICE else "cpu"
EPS = 1e-5
SHAPES = [(1, 64), (3, 200)] + [(5, 576)] * ON_DEVICE + [(1, 2048), (33, 2048), (256, 5120), (4097, 2048)] * ON_DEVICE

# Float32 sums of thousands of terms. Bfloat16 keeps 8 bits: a unit of the last is 2**-8 = 0.004 of a value, and where a
# device rounds, Triton's interpreter cuts off. The residual and the normed value are rounded one after another.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def relative_error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("rows_per_token", [0, 1, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_added_and_normed(shape: tuple[int, int], rows_per_token: int, dtype: torch.dtype) -> None:
    num_tokens, size = shape
    x = drawn(1, *shape, dtype=dtype)
    weight = drawn(2, size, dtype=dtype)
    added: dict[str, Any] = {}
    if rows_per_token:
        added = {"rows": drawn(3, num_tokens * rows_per_token, size, dtype=dtype), "bias": drawn(4, size)}
    expected_residual, expected = reference.add_rms_norm(x, weight, EPS, **added)
    target = torch.full_like(x, float("nan"))
    out = add_rms_norm(x, weight, EPS, residual=target, wants_int8=True, **added)
    assert out.values is not None
    assert out.values.dtype is dtype
    assert out.residual is target
    assert relative_error(out.residual, expected_residual) < TOLERANCES[dtype]
    assert relative_error(out.values, expected) < TOLERANCES[dtype]
    assert out.int8 is not None
    assert out.scales is not None
    int8, scales = quantize_groups(expected)
    assert scales.shape == out.scales.shape
    # A value halfway between two steps, or a residual halfway between two bfloat16, may go the other way.
    assert relative_error(dequantize_groups(out.int8, out.scales), expected) < 1.1 * relative_error(
        dequantize_groups(int8, scales), expected
    ) + TOLERANCES[dtype]  # fmt: skip
    if dtype is torch.float32:
        torch.testing.assert_close(out.scales, scales, rtol=1e-4, atol=0)
        assert int((out.int8.int() - int8.int()).abs().max()) <= 1


def test_the_residual_may_be_written_over_x() -> None:
    x, rows, weight = drawn(1, 3, 96), drawn(2, 6, 96), drawn(3, 96)
    expected_residual, expected = reference.add_rms_norm(x, weight, EPS, rows=rows)
    out = add_rms_norm(x, weight, EPS, rows=rows, residual=x)
    assert out.values is not None
    torch.testing.assert_close(x, expected_residual)
    assert relative_error(out.values, expected) < 1e-5


def test_layer_norm_has_a_mean_and_a_bias() -> None:
    x = drawn(1, 4, 200) + 3
    weight, norm_bias = drawn(2, 200), drawn(3, 200)
    out = add_rms_norm(x, weight, EPS, norm_bias=norm_bias)
    assert out.values is not None
    assert out.residual is x
    expected = torch.nn.functional.layer_norm(x, (200,), weight, norm_bias, EPS)
    assert relative_error(out.values, expected) < 1e-5


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_chosen_rows_only(id_dtype: torch.dtype) -> None:
    x, rows, weight = drawn(1, 7, 128), drawn(2, 14, 128), drawn(3, 128)
    before = x.clone()
    row_ids = torch.tensor([6, 0, 6], device=DEVICE, dtype=id_dtype)
    out = add_rms_norm(x, weight, EPS, rows=rows, row_ids=row_ids)
    _, expected = reference.add_rms_norm(x, weight, EPS, rows=rows, row_ids=row_ids)
    assert out.values is not None
    assert relative_error(out.values, expected) < 1e-5
    assert torch.equal(x, before)


def test_a_float32_stream_gives_values_of_the_weights_type() -> None:
    x, weight = drawn(1, 2, 128), drawn(2, 128, dtype=torch.bfloat16)
    out = add_rms_norm(x, weight, EPS)
    assert out.values is not None
    assert out.values.dtype is torch.bfloat16
    assert relative_error(out.values, reference.add_rms_norm(x, weight, EPS)[1]) < 1e-2


def test_a_group_of_zeros_has_scale_one() -> None:
    x = torch.zeros(1, 256, device=DEVICE)
    x[0, 128:] = 2.0
    out = add_rms_norm(x, torch.ones(256, device=DEVICE), EPS, wants_values=False, wants_int8=True)
    assert out.values is None
    assert out.int8 is not None
    assert out.scales is not None
    assert out.scales[0, 0] == 1
    assert torch.equal(out.int8[0, :128], torch.zeros_like(out.int8[0, :128]))
    assert out.int8[0, 128:].unique().tolist() == [127]


def test_no_tokens_are_fine() -> None:
    weight = torch.ones(64, device=DEVICE)
    out = add_rms_norm(torch.empty(0, 64, device=DEVICE), weight, EPS, rows=torch.empty(0, 64, device=DEVICE))
    assert out.values is not None
    assert out.values.shape == (0, 64)


def test_sizes_that_no_program_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden size 8193 exceeds 8192"):
        add_rms_norm(torch.empty(1, 8193), torch.empty(8193), EPS)
    with pytest.raises(ValueError, match="5 rows for 2 tokens: need 1 to 8"):
        add_rms_norm(torch.empty(2, 64), torch.empty(64), EPS, rows=torch.empty(5, 64))
