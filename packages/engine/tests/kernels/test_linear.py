"""Dense linear layers in every format against float64."""

import sys

import pytest
import torch
from torch import Tensor

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.kernels.linear_bitsandbytes import bitsandbytes_name, linear_bitsandbytes, try_bitsandbytes
from deepseek_engine.kernels.reference import linear as reference
from deepseek_engine.kernels.reference.quantize_groups import quantize_groups
from deepseek_engine.kernels.triton.linear import choose_linear, linear_bf16, linear_w8a16
from deepseek_engine.kernels.triton.linear_few_rows import StreamConfig, stream
from deepseek_engine.kernels.triton.linear_int8 import Int8Config, linear_w8a8
from deepseek_engine.quantization.int8 import quantize_rows
from deepseek_engine.testing.fake_bitsandbytes import FakeBitsandbytes, install_fake_bitsandbytes

ON_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if ON_DEVICE else "cpu"

# Float32 sums of up to 2048 products. Bfloat16: one rounding of the result, 2**-9 on average less; the interpreter cuts
# off instead. Operands are exact in both: they are rounded before the reference multiplies them too.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 5e-3}

# T, N, K
SHAPES = [(1, 40, 200), (3, 30, 200), (5, 70, 144)] + ON_DEVICE * [
    (1, 4096, 2048), (2, 2048, 2048), (4, 3648, 2048), (8, 4096, 2048), (17, 960, 576), (32, 2048, 2048),
    (33, 3648, 2048), (64, 8192, 2048), (200, 2048, 1408),
]  # fmt: skip


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def relative_error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_float_weights(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    num_tokens, num_rows, size = shape
    x, weight = drawn(1, num_tokens, size, dtype=dtype), drawn(2, num_rows, size, dtype=dtype)
    bias = drawn(3, num_rows, dtype=dtype)
    assert relative_error(linear_bf16(x, weight), reference.linear_bf16(x, weight)) < TOLERANCES[dtype]
    assert relative_error(linear_bf16(x, weight, bias), reference.linear_bf16(x, weight, bias)) < TOLERANCES[dtype]


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_weights(shape: tuple[int, int, int]) -> None:
    num_tokens, num_rows, size = shape
    x = drawn(1, num_tokens, size, dtype=torch.bfloat16)
    weight, scale = quantize_rows(drawn(2, num_rows, size))
    bias = drawn(3, num_rows)
    out = linear_w8a16(x, weight, scale, bias)
    assert relative_error(out, reference.linear_w8a16(x, weight, scale, bias)) < TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize(
    "config",
    [StreamConfig(16, 16, 32, 1, 4, 2), StreamConfig(16, 16, 32, 3, 4, 2)]
    + ON_DEVICE * [StreamConfig(64, 16, 128, 4, 4, 4), StreamConfig(128, 16, 64, 8, 4, 3)],
)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_streams_with_split_sums(config: StreamConfig, dtype: torch.dtype) -> None:
    x, weight, bias = drawn(1, 18, 72, dtype=dtype), drawn(2, 20, 72, dtype=dtype), drawn(3, 20)
    expected = reference.linear_bf16(x, weight, bias)
    outs = [torch.full((18, 20), float("nan"), dtype=dtype, device=DEVICE) for _ in range(2)]
    for out in outs:  # the second finds the counters as the first left them
        stream(x, weight, None, bias, out, config)
        assert relative_error(out, expected) < TOLERANCES[dtype]
    assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("config", [Int8Config(16, 32, 1, 4, 2), Int8Config(32, 16, 2, 4, 2, group_t=1)])
@pytest.mark.parametrize("size", [256, 208])
def test_int8_times_int8(size: int, config: Int8Config) -> None:
    x, x_scale = quantize_groups(drawn(1, 37, size))
    weight, scale = quantize_rows(drawn(2, 70, size))
    bias = drawn(3, 70)
    out = linear_w8a8(x, x_scale, weight, scale, bias, dtype=torch.float32, config=None if ON_DEVICE else config)
    assert relative_error(out, reference.linear_w8a8(x, x_scale, weight, scale, bias)) < 1e-5


@pytest.mark.skipif(not ON_DEVICE, reason="the sizes of a model take the interpreter minutes")
@pytest.mark.parametrize("num_tokens", [65, 256, 1000, 4096])
def test_int8_times_int8_at_full_size(num_tokens: int) -> None:
    x, x_scale = quantize_groups(drawn(1, num_tokens, 1408))
    weight, scale = quantize_rows(drawn(2, 2048, 1408))
    out = linear_w8a8(x, x_scale, weight, scale)
    assert relative_error(out, reference.linear_w8a8(x, x_scale, weight, scale)) < TOLERANCES[torch.bfloat16]


def test_quantised_activations_cost_under_two_percent() -> None:
    # 127 steps to the largest of 128 normal values, about 2.8: a step is 0.022, its rounding 0.0064 of a value, and the
    # weight's, over rows of 256, about as much.
    activations, weights = drawn(1, 33, 256), drawn(2, 64, 256)
    out = linear_w8a8(*quantize_groups(activations), *quantize_rows(weights), dtype=torch.float32)
    assert relative_error(out, activations.double() @ weights.double().t()) < 0.02


def test_no_tokens_are_fine() -> None:
    weight, scale = quantize_rows(torch.ones(8, 128, device=DEVICE))
    empty = torch.empty(0, 128, device=DEVICE)
    assert linear_bf16(empty, weight.float()).shape == (0, 8)
    assert linear_w8a16(empty, weight, scale).shape == (0, 8)
    assert linear_w8a8(*quantize_groups(empty), weight, scale).shape == (0, 8)


def test_the_kernel_goes_by_tokens_and_format() -> None:
    assert choose_linear(1, "float32") == choose_linear(4, "bfloat16") == choose_linear(2, "int8") == "multiply"
    assert choose_linear(32, "bfloat16") == choose_linear(63, "int8") == "stream"
    assert choose_linear(65, "bfloat16") == choose_linear(5, "float32") == "library"
    assert choose_linear(8192, "int8") == "w8a8"


@pytest.mark.parametrize("is_installed", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_bitsandbytes_gives_the_same_within_its_own_quantisation(
    num_tokens: int, is_installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_installed:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra that is not installed here")
    else:
        install_fake_bitsandbytes(monkeypatch)
    x = drawn(1, num_tokens, 512, dtype=torch.bfloat16)[:, 256:]  # rows that are not one behind another
    weight, scale = quantize_rows(drawn(2, 64, 256))
    bias = drawn(3, 64)
    out = linear_bitsandbytes(x, weight, 127 * scale, bias)
    assert out.dtype is torch.bfloat16
    # One scale a token: 127 steps to the largest of 256 values, a rounding of 0.007 of a value.
    assert relative_error(out, reference.linear_w8a16(x, weight, scale, bias)) < 0.02
    zeros = linear_bitsandbytes(torch.zeros_like(x), weight, 127 * scale, bias)  # padding
    assert relative_error(zeros, bias.double().expand_as(zeros)) < TOLERANCES[torch.bfloat16]
    assert linear_bitsandbytes(x[:0], weight, 127 * scale, bias).shape == (0, 64)


def test_the_stand_in_does_what_bitsandbytes_does() -> None:
    library = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is an extra")
    fake = FakeBitsandbytes()
    x, bias, largest = drawn(1, 5, 64).half(), drawn(2, 8).half(), drawn(3, 8).abs()
    values, largest_T, _ = library.int8_vectorwise_quant(x)
    fake_values, fake_largest_T, _ = fake.int8_vectorwise_quant(x)
    assert (values.int() - fake_values.int()).abs().max() <= 1  # a tie may go either way
    assert torch.equal(largest_T, fake_largest_T)
    weight = drawn(4, 8, 64).mul(40).clamp(-127, 127).to(torch.int8)
    product = library.int8_linear_matmul(values, weight)
    assert torch.equal(product, fake.int8_linear_matmul(values, weight))
    out = library.int8_mm_dequant(product, largest_T, largest, bias=bias)
    expected = fake.int8_mm_dequant(product, largest_T, largest, bias=bias)
    assert out.dtype is expected.dtype is torch.float16
    assert torch.allclose(out, expected, rtol=2e-3, atol=1e-3)  # a rounding or two of float16


@pytest.mark.skipif(not ON_DEVICE, reason="CUDA graphs are for GPUs")
def test_a_cuda_graph_holds_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra")
    try_bitsandbytes(torch.device(DEVICE, torch.cuda.current_device()))  # which makes its cuBLAS handle
    weight, scale = quantize_rows(drawn(1, 2048, 1408))
    largest, x = 127 * scale, torch.zeros(33, 1408, dtype=torch.bfloat16, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = linear_bitsandbytes(x, weight, largest)
    for seed in (2, 3):
        x.copy_(drawn(seed, 33, 1408, dtype=torch.bfloat16))
        graph.replay()
        assert torch.equal(out, linear_bitsandbytes(x, weight, largest))


def test_a_bitsandbytes_that_works_is_told_from_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, device = install_fake_bitsandbytes(monkeypatch), torch.device(DEVICE)
    try_bitsandbytes(device)
    assert bitsandbytes_name() == "bitsandbytes 0.50.2"
    monkeypatch.setattr(fake, "int8_linear_matmul", lambda A, B: torch.zeros(A.shape[0], B.shape[0], dtype=torch.int32))
    with pytest.raises(ModelLoadError, match=r"0\.50\.2 gives 0 for a product that is 10944.* or linear_backend="):
        try_bitsandbytes(torch.device("cpu"))
    monkeypatch.delattr(FakeBitsandbytes, "int8_mm_dequant")
    with pytest.raises(ModelLoadError, match=r"does not work on this device .*int8_mm_dequant.*: use linear_b"):
        try_bitsandbytes(torch.device("cpu"))


def test_a_missing_bitsandbytes_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ModelLoadError, match=r"pip install 'deepseek-engine\[bitsandbytes\]', or use linear_b"):
        linear_bitsandbytes(torch.ones(1, 64), torch.ones(8, 64, dtype=torch.int8), torch.ones(8))


@pytest.mark.parametrize("shape", [(8, 62), (6, 64)])
def test_bitsandbytes_never_multiplies_floats_instead(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_bitsandbytes(monkeypatch)
    weight = torch.ones(shape, dtype=torch.int8)
    with pytest.raises(ValueError, match="sizes that are multiples of 4"):
        linear_bitsandbytes(torch.ones(1, shape[1]), weight, torch.ones(shape[0]))


def test_bitsandbytes_counts_its_outputs_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_bitsandbytes(monkeypatch)
    x, weight = torch.ones(1, 4).expand(2**21, 4), torch.ones(1, 4, dtype=torch.int8).expand(1024, 4)
    with pytest.raises(ModelLoadError, match="2097152 tokens with 1024 each are more: use a smaller max_num"):
        linear_bitsandbytes(x, weight, torch.ones(1024))
