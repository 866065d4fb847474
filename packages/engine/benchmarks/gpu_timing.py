"""Times of GPU kernels: medians of graph replays over rotating inputs, beside the ceilings of the card.

Every microbenchmark prints bytes or operations over time as a share of what a large copy or a large product reaches on
the same card in the same run.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the card reaches on large random data, measured in this run."""

    copy_gb_s: float
    bf16_tflops: float
    int8_tops: float


def time_us(variants: Sequence[Callable[[], object]], repeats: int = 20) -> float:
    """Median microseconds of one call.

    Args:
        variants: the same work on different inputs, enough of them that the 50 MB of L2 do not hold one until its turn
            comes again. They are captured into one graph, one after another.
        repeats: replays of the graph.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for variant in variants:  # compiles, and fills caches
            variant()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for variant in variants:
            variant()
    for _ in range(3):
        graph.replay()
    times: list[float] = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[repeats // 2] / len(variants) * 1e3


@functools.cache
def ceilings() -> Ceilings:
    """Measure them: a copy of 2 GiB, and products of 8192 x 8192 matrices."""
    source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_us = time_us([lambda: target.copy_(source)], 10)
    num_bytes = 2 * source.numel()
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    bf16_us = time_us([lambda: a @ b], 10)
    i, j = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device="cuda") for _ in range(2))
    int8_us = time_us([lambda: torch._int_mm(i, j.t())], 10)  # noqa: SLF001
    operations = 2 * size**3
    return Ceilings(num_bytes / copy_us / 1e3, operations / bf16_us / 1e6, operations / int8_us / 1e6)


def bytes_line(name: str, us: float, num_bytes: float) -> str:
    """A line of a table for work that waits for memory."""
    rate = num_bytes / us / 1e3
    return f"{name:<64} {us:>9.1f} us {rate:>7.0f} GB/s {rate / ceilings().copy_gb_s:>5.0%} of a copy's"


def flops_line(name: str, us: float, operations: float, *, is_int8: bool = False) -> str:
    """A line of a table for work that waits for arithmetic."""
    rate = operations / us / 1e6
    ceiling = ceilings().int8_tops if is_int8 else ceilings().bf16_tflops
    return f"{name:<64} {us:>9.1f} us {rate:>7.0f} TFLOP/s {rate / ceiling:>5.0%} of a product's"
