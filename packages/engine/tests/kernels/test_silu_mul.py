"""The gated product of feed-forward networks against float64."""

import pytest
import torch

from deepseek_engine.kernels.reference import silu_mul as reference
from deepseek_engine.kernels.reference.quantize_groups import dequantize_groups, quantize_groups
from deepseek_engine.kernels.triton.silu_mul import silu_mul

ON_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if ON_DEVICE else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64), (3, 1408)] + [(1, 10944), (4099, 1408)] * ON_DEVICE)
def test_values_and_groups(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    gate_up = (3 * torch.randn(shape[0], 2 * shape[1], generator=generator)).to(DEVICE, dtype)
    expected = reference.silu_mul(gate_up)
    values, int8, scales = silu_mul(gate_up, wants_int8=True)
    assert values is not None
    assert int8 is not None
    assert scales is not None
    # One rounding to bfloat16, which the interpreter does by cutting off.
    tolerance = 1e-5 if dtype is torch.float32 else 5e-3
    assert float((values.double() - expected).norm() / expected.norm()) < tolerance
    steps, expected_scales = quantize_groups(expected)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-5, atol=0)
    assert int((int8.int() - steps.int()).abs().max()) <= 1
    rounding = float((dequantize_groups(int8, scales) - expected).norm() / expected.norm())
    assert rounding < 0.02


def test_only_what_is_asked_for_is_written() -> None:
    gate_up = torch.ones(2, 128, device=DEVICE)
    assert silu_mul(gate_up)[1:] == (None, None)
    assert silu_mul(gate_up, wants_values=False, wants_int8=True)[0] is None
    assert silu_mul(gate_up[:0])[0] is not None
