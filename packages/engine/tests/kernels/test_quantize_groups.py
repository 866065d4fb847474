"""Activations in INT8 by groups of channels."""

import pytest
import torch

from deepseek_engine.kernels.reference import quantize_groups as reference
from deepseek_engine.kernels.triton.quantize_groups import QuantizedRows, quantize_groups

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("num_rows", "size"), [(1, 128), (17, 576), (33, 96), (5, 1408)])
def test_each_group_has_its_own_scale(num_rows: int, size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(num_rows, size, generator=generator).to(dtype)
    x[:, 5] *= 100  # an outlier channel
    x[0, :128] = 0
    out = poisoned(num_rows, size)
    assert quantize_groups(x.to(DEVICE), out) is out
    values, scales = reference.quantize_groups(x)
    # Quotients may differ in the last bit, so one that lies at a half may be rounded the other way.
    torch.testing.assert_close(out.scales.cpu(), scales, rtol=1e-6, atol=0)
    difference = (out.values.cpu().int() - values.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-2
    assert out.scales[0, 0] == 1


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_or_an_infinity_shows_in_the_scale(bad: float) -> None:
    x = torch.ones(2, 256)
    x[1, 200] = bad
    scales = quantize_groups(x.to(DEVICE)).scales.cpu()
    assert scales.isnan().tolist() == [[False, False], [False, True]]


def poisoned(num_rows: int, size: int) -> QuantizedRows:
    out = QuantizedRows.empty(num_rows, size, torch.device(DEVICE))
    out.scales.fill_(float("nan"))
    out.values.fill_(-128)
    return out
