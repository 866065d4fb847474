"""Products of packed weights against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from deepseek_engine.kernels.cpu.library import ADD_BF16, SILU_MUL, STORE_FLOAT, load
from deepseek_engine.kernels.cpu.packed_matrix import PackedMatrix
from deepseek_engine.quantization.int8 import int8_linear, quantize_rows

pytestmark = [
    pytest.mark.skipif(load() is None, reason="this machine's processor or build has no CPU kernels"),
    pytest.mark.usefixtures("either_unit"),
]

SHAPES = [(32, 2), (49, 64), (96, 576), (100, 30), (320, 1536)]
ROWS = [1, 2, 3, 5, 7, 12, 13, 16, 31, 300]


def packed(weight, bias=None, scale=None, **options) -> PackedMatrix:
    matrix = PackedMatrix.pack(weight, bias, scale, **options)
    assert matrix is not None
    return matrix


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("num_rows", ROWS)
def test_bfloat16_products_equal_float32_ones_up_to_rounding(outputs, inputs, num_rows):
    torch.manual_seed(0)
    weight, rows = torch.randn(outputs, inputs).bfloat16(), torch.randn(num_rows, inputs).bfloat16()
    bias = torch.randn(outputs).bfloat16()
    exact = F.linear(rows.float(), weight.float(), bias.float())
    got = packed(weight, bias).multiply(rows, STORE_FLOAT)
    # The kernel adds products in float32, in its own order: sqrt(inputs) roundings of partial sums.
    torch.testing.assert_close(got, exact, atol=2e-6 * inputs, rtol=1e-4)


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 3), (64, 130), (257, 64)])
@pytest.mark.parametrize("num_rows", ROWS)
def test_float32_weights_keep_their_precision(outputs, inputs, num_rows):
    torch.manual_seed(5)
    weight, rows = torch.randn(outputs, inputs), torch.randn(num_rows, inputs).bfloat16()
    exact = F.linear(rows.double(), weight.double()).float()
    torch.testing.assert_close(packed(weight).multiply(rows, STORE_FLOAT), exact, atol=2e-6 * inputs, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_rows", ROWS)
def test_a_rows_result_does_not_depend_on_the_other_rows(num_rows, dtype):
    torch.manual_seed(1)
    matrix, rows = packed(torch.randn(200, 130).to(dtype)), torch.randn(num_rows, 130).bfloat16()
    together = matrix.multiply(rows, STORE_FLOAT)
    alone = torch.cat([matrix.multiply(row[None], STORE_FLOAT) for row in rows])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(("outputs", "inputs"), [(32, 4), (49, 64), (96, 576)])
@pytest.mark.parametrize("num_rows", [1, 3, 8, 300])
def test_int8_products_equal_the_reference(outputs, inputs, num_rows):
    torch.manual_seed(2)
    weight, scale = quantize_rows(torch.randn(outputs, inputs))
    rows, bias = torch.randn(num_rows, inputs).bfloat16(), torch.randn(outputs)
    expected = int8_linear(rows.float(), weight, scale, bias)
    got = packed(weight, bias, scale).multiply(rows, STORE_FLOAT)
    # The integer sums are equal; only the order of the two factors' multiplication differs.
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 5, 40])
def test_gates_and_values_are_combined_on_the_way_out(num_rows):
    torch.manual_seed(3)
    weight, rows = torch.randn(192, 64).bfloat16(), torch.randn(num_rows, 64).bfloat16()
    gate, value = F.linear(rows.float(), weight.float()).bfloat16().chunk(2, dim=-1)
    got = packed(weight, interleave=True).multiply(rows, SILU_MUL)
    torch.testing.assert_close(got, F.silu(gate) * value, atol=0.02, rtol=0.02)


def test_products_are_added_to_what_is_there():
    torch.manual_seed(4)
    weight, rows, stream = torch.randn(70, 64).bfloat16(), torch.randn(9, 64).bfloat16(), torch.randn(9, 70).bfloat16()
    expected = stream + packed(weight).multiply(rows)
    assert torch.equal(packed(weight).multiply(rows, ADD_BF16, stream.clone()), expected)


def test_weights_that_the_kernels_cannot_take_are_left_to_torch():
    assert PackedMatrix.pack(torch.randn(8, 8).half()) is None
    assert PackedMatrix.pack(torch.randn(8, 7).bfloat16()) is None
    assert PackedMatrix.pack(torch.randn(24, 8).bfloat16(), interleave=True) is None
