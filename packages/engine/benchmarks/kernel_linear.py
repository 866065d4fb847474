"""Times of dense linear layers beside cuBLAS's and bitsandbytes'. Run it on a GPU: `python kernel_linear.py`.

Weights rotate, so that each is read from memory. Below 512 tokens a line gives the share of a copy's rate, beyond that
of a product's. `--tune` prints what other tiles take, `--backends` what `--linear-backend` chooses between.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from gpu_timing import bytes_line, flops_line, time_us
from torch import Tensor

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.kernels.linear_bitsandbytes import linear_bitsandbytes, load_bitsandbytes
from deepseek_engine.kernels.reference.quantize_groups import GROUP_SIZE
from deepseek_engine.kernels.triton.launch import num_multiprocessors
from deepseek_engine.kernels.triton.linear import choose_linear, linear_w8a16
from deepseek_engine.kernels.triton.linear_few_rows import StreamConfig, choose_config, multiply, stream
from deepseek_engine.kernels.triton.linear_int8 import Int8Config, linear_w8a8
from deepseek_engine.kernels.triton.quantize_groups import quantize_groups

DEVICE = "cuda"
SHAPES = ((4096, 2048), (2048, 2048), (102400, 2048), (3648, 2048), (8192, 2048), (960, 576))
FEW = (1, 2, 4, 8, 16, 32, 64, 256)
BACKEND_SHAPES, BACKEND_TOKENS = ((4096, 2048), (2048, 2048)), (1, 32, 256, 8192)
MANY = ((16384, 4096, 2048), (16384, 2048, 2048), (1024, 4096, 2048), (16384, 2048, 1408))


def floats(*shape: int) -> Tensor:
    """Random bfloat16."""
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def int8s(*shape: int) -> Tensor:
    """Random int8."""
    return torch.randint(-127, 128, shape, device=DEVICE, dtype=torch.int8)


def num_variants(num_bytes: float) -> int:
    """Weights that exceed L2 together, up to 48 of them."""
    return min(max(int(200e6 / num_bytes), 2), 48)


def line(name: str, shape: tuple[int, int, int], us: float, itemsize: int, *, is_int8: bool = False) -> str:
    """A line of bytes for few tokens, of operations for many."""
    num_tokens, num_rows, size = shape
    name = f"{name} T={num_tokens} {size}->{num_rows}"
    if num_tokens >= 512:
        return flops_line(name, us, 2.0 * num_tokens * num_rows * size, is_int8=is_int8)
    return bytes_line(name, us, num_rows * size * itemsize + num_tokens * (size + num_rows) * 2)


def few_lines(num_tokens: int, num_rows: int, size: int) -> list[str]:
    """All ways to serve one shape of few tokens."""
    shape = (num_tokens, num_rows, size)
    x, scale = floats(num_tokens, size), torch.rand(num_rows, device=DEVICE)
    weights = [floats(num_rows, size) / 64 for _ in range(num_variants(num_rows * size * 2))]
    out = torch.empty(num_tokens, num_rows, device=DEVICE, dtype=torch.bfloat16)
    found = [line("F.linear bf16", shape, time_us([lambda w=w: F.linear(x, w) for w in weights]), 2)]
    if num_tokens <= 4:
        calls: Sequence[Callable[[], object]] = [lambda w=w: multiply(x, w, None, None, out) for w in weights]
        found.append(line("multiply bf16", shape, time_us(calls), 2))
    found.append(line("stream bf16", shape, time_us([lambda w=w: stream(x, w, None, None, out) for w in weights]), 2))
    weights = [int8s(num_rows, size) for _ in range(num_variants(num_rows * size))]
    if num_tokens <= 4:
        found.append(
            line("multiply w8a16", shape, time_us([lambda w=w: linear_w8a16(x, w, scale) for w in weights]), 1)
        )
    found.append(line("stream w8a16", shape, time_us([lambda w=w: stream(x, w, scale, None, out) for w in weights]), 1))
    if num_tokens >= 32:
        found += int8_lines(shape, weights, scale)
    return found


def int8_lines(shape: tuple[int, int, int], weights: Sequence[Tensor], scale: Tensor) -> list[str]:
    """INT8 x INT8: ours, PyTorch's bare product, and bitsandbytes with its quantisation."""
    num_tokens, _, size = shape
    x, x_scale = int8s(num_tokens, size), torch.rand(num_tokens, -(-size // GROUP_SIZE), device=DEVICE)
    calls: Sequence[Callable[[], object]] = [lambda w=w: linear_w8a8(x, x_scale, w, scale) for w in weights]
    found = [line("w8a8", shape, time_us(calls), 1, is_int8=True)]
    calls = [lambda w=w: torch._int_mm(x, w.t()) for w in weights]  # noqa: SLF001
    found.append(line("torch._int_mm, no scales", shape, time_us(calls), 1, is_int8=True))
    try:
        load_bitsandbytes()
    except ModelLoadError as error:
        return [*found, f"bitsandbytes: skipped ({error})"]
    half, largest = floats(num_tokens, size).half(), 127 * scale
    calls = [lambda w=w: linear_bitsandbytes(half, w, largest) for w in weights]
    return [*found, line("bitsandbytes with quantising, fp16", shape, time_us(calls), 1, is_int8=True)]


def many_lines(num_tokens: int, num_rows: int, size: int) -> list[str]:
    """All ways to serve one shape of many tokens."""
    shape = (num_tokens, num_rows, size)
    x = floats(num_tokens, size)
    weights = [floats(num_rows, size) for _ in range(4)]
    found = [line("F.linear bf16", shape, time_us([lambda w=w: F.linear(x, w) for w in weights]), 2)]
    scale = torch.rand(num_rows, device=DEVICE)
    return found + int8_lines(shape, [int8s(num_rows, size) for _ in range(4)], scale)


def lines() -> list[str]:
    """The table."""
    found = [each for rows, size in SHAPES for num_tokens in FEW for each in few_lines(num_tokens, rows, size)]
    return found + [each for shape in MANY for each in many_lines(*shape)]


def backend_lines() -> list[str]:
    """Ours beside bitsandbytes, both from bfloat16 to bfloat16 with INT8 weights."""
    found: list[str] = []
    for num_rows, size in BACKEND_SHAPES:
        weights = [int8s(num_rows, size) for _ in range(num_variants(num_rows * size))]
        scale = torch.rand(num_rows, device=DEVICE) / 127
        for num_tokens in BACKEND_TOKENS:
            shape, x = (num_tokens, num_rows, size), floats(num_tokens, size)
            for name, call in backends(x, scale).items():
                us = time_us([lambda w=w, call=call: call(w) for w in weights])
                found.append(line(name, shape, us, 1, is_int8=True))
    return found


def backends(x: Tensor, scale: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """What may multiply a weight."""
    largest = 127 * scale
    found: dict[str, Callable[[Tensor], Tensor]] = {"bitsandbytes": lambda w: linear_bitsandbytes(x, w, largest)}
    if choose_linear(x.shape[0], "int8") != "w8a8":
        return {"triton w8a16": lambda w: linear_w8a16(x, w, scale), **found}
    rows = quantize_groups(x)  # as the norm before a layer leaves them

    def with_quantising(weight: Tensor) -> Tensor:
        made = quantize_groups(x)
        return linear_w8a8(made.values, made.scales, weight, scale)

    return {
        "triton w8a8, rows in INT8": lambda w: linear_w8a8(rows.values, rows.scales, w, scale),
        "triton w8a8 with quantising": with_quantising,
        **found,
    }


def tuned_lines() -> list[str]:
    """What other tiles take."""
    found: list[str] = []
    for num_rows, size in ((4096, 2048), (102400, 2048)):
        for num_tokens in (8, 32, 64):
            found += tuned_stream(num_tokens, num_rows, size, torch.bfloat16)
        for num_tokens in (8, 32, 256):
            found += tuned_stream(num_tokens, num_rows, size, torch.int8)
    return found + tuned_w8a8(*MANY[0]) + tuned_w8a8(256, 4096, 2048)


def tuned_stream(num_tokens: int, num_rows: int, size: int, dtype: torch.dtype) -> list[str]:
    """One shape with the chosen tile and its neighbours."""
    make = int8s if dtype is torch.int8 else floats
    weights = [make(num_rows, size) for _ in range(num_variants(num_rows * size * dtype.itemsize))]
    scale = torch.rand(num_rows, device=DEVICE) if dtype is torch.int8 else None
    x, out = floats(num_tokens, size), floats(num_tokens, num_rows)
    found: list[str] = []
    for config in stream_configs(num_tokens, num_rows, size, dtype):
        us = time_us([lambda w=w, c=config: stream(x, w, scale, None, out, c) for w in weights])
        name = f"{str(dtype)[6:]} {config_text(config)}"
        found.append(line(name, (num_tokens, num_rows, size), us, dtype.itemsize))
    return found


def tuned_w8a8(num_tokens: int, num_rows: int, size: int) -> list[str]:
    """One INT8 x INT8 shape with several tiles."""
    x, x_scale = int8s(num_tokens, size), torch.rand(num_tokens, -(-size // GROUP_SIZE), device=DEVICE)
    weights, scale = [int8s(num_rows, size) for _ in range(8)], torch.rand(num_rows, device=DEVICE)
    found: list[str] = []
    for config in (
        Int8Config(128, 128, 2, 8, 4), Int8Config(128, 128, 2, 8, 3), Int8Config(128, 128, 2, 8, 4, group_t=16),
        Int8Config(128, 128, 1, 8, 4), Int8Config(128, 128, 1, 8, 3), Int8Config(64, 128, 1, 4, 3),
        Int8Config(64, 128, 1, 4, 4), Int8Config(128, 64, 2, 8, 4), Int8Config(64, 64, 2, 4, 3),
        Int8Config(64, 64, 1, 4, 4),
    ):  # fmt: skip
        us = time_us([lambda w=w, c=config: linear_w8a8(x, x_scale, w, scale, config=c) for w in weights])
        found.append(line(f"w8a8 {config_text(config)}", (num_tokens, num_rows, size), us, 1, is_int8=True))
    return found


def stream_configs(num_tokens: int, num_rows: int, size: int, dtype: torch.dtype) -> list[StreamConfig]:
    """The chosen one first, then its neighbours."""
    chosen = choose_config(num_tokens, num_rows, size, dtype, num_multiprocessors(torch.device(DEVICE, 0)))
    found = [chosen, replace(chosen, prefetched_lines=1), replace(chosen, num_stages=chosen.num_stages - 2)]
    found.append(replace(chosen, block_k=chosen.block_k // 2))
    if num_rows * dtype.itemsize < 16384:
        found += [replace(chosen, num_splits=chosen.num_splits * factor) for factor in (2, 4)]
    if chosen.block_t <= 64:
        found.append(replace(chosen, block_n=128, num_splits=chosen.num_splits * 2, num_warps=8, num_stages=3))
    else:
        found.append(replace(chosen, block_t=64, block_n=64, num_warps=4))
    return found


def config_text(config: StreamConfig | Int8Config) -> str:
    """Its numbers, in the order of its fields."""
    return "/".join(str(getattr(config, name)) for name in type(config).__dataclass_fields__)


if __name__ == "__main__":
    chosen = tuned_lines if "--tune" in sys.argv else backend_lines if "--backends" in sys.argv else lines
    print("\n".join(chosen()))
