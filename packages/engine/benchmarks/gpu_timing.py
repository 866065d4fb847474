"""Times of GPU kernels: medians of graph replays over rotating inputs, beside the ceilings of the card.

Every microbenchmark prints bytes or operations over time as a share of what a large copy or a large product reaches on
the same card in the same run.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deepseek_engine.bench.ceilings import measure_ceilings


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
    """Measure them, once."""
    measured = measure_ceilings(torch.device("cuda"), (torch.bfloat16, torch.int8))
    return Ceilings(measured.copy_gb_s, measured.tera_ops["bfloat16"], measured.tera_ops["int8"])


def bytes_line(name: str, us: float, num_bytes: float) -> str:
    """A line of a table for work that waits for memory."""
    rate = num_bytes / us / 1e3
    return f"{name:<64} {us:>9.1f} us {rate:>7.0f} GB/s {rate / ceilings().copy_gb_s:>5.0%} of a copy's"


def flops_line(name: str, us: float, operations: float, *, is_int8: bool = False) -> str:
    """A line of a table for work that waits for arithmetic."""
    rate = operations / us / 1e6
    ceiling = ceilings().int8_tops if is_int8 else ceilings().bf16_tflops
    return f"{name:<64} {us:>9.1f} us {rate:>7.0f} TFLOP/s {rate / ceiling:>5.0%} of a product's"
