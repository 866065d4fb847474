"""What a decode step is made of: its kernels, how long each runs, and how long the device waits between them."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from deepseek_engine.bench.ceilings import synchronize
from deepseek_engine.bench.workloads import Workload
from deepseek_engine.engine import Engine
from deepseek_engine.messages import Submit
from deepseek_engine.sampling_params import SamplingParams

NUM_STEPS: Final = 8
"""Steps that are recorded; figures are means over them."""
_STEPS_BEFORE: Final = 8
_MOST_LISTED: Final = 25
_NAME_WIDTH: Final = 72


@dataclass(frozen=True, slots=True)
class Kernel:
    """One run of one kernel (on a CPU: of one operator), times in microseconds of the profiler's clock."""

    name: str
    start_us: float
    end_us: float


def profile_decode(engine: Engine, workload: Workload, num_layers: int) -> str:
    """A table of the kernels of the workload's decode steps; nothing else may be under way in the engine."""
    device = torch.device(engine.info.device)
    params = SamplingParams(temperature=0.0, max_tokens=1 + 2 * _STEPS_BEFORE + NUM_STEPS, ignore_eos=True)
    rng = np.random.default_rng(0)
    waiting: set[str] = set()
    for index in range(workload.num_requests):
        prompt: list[int] = rng.integers(engine.info.vocab_size, size=workload.prompt_tokens).tolist()
        waiting.add(f"profile-{index}")
        engine.add_request(Submit(f"profile-{index}", prompt, params))
    names = sorted(waiting)
    while waiting:  # prompts
        waiting -= {delta.request_id for delta in engine.step().deltas}
    for _ in range(_STEPS_BEFORE):
        engine.step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    synchronize(device)
    with profile(activities=activities) as recorded:
        start = time.perf_counter()
        for _ in range(NUM_STEPS):
            engine.step()
        synchronize(device)
        seconds = time.perf_counter() - start
    for name in names:
        engine.cancel(name)
    while engine.has_work:
        engine.step()
    kernels = _kernels(cast("Iterable[Any]", recorded.events()), device)
    head = f"batch {workload.num_requests}, context {workload.prompt_tokens + _STEPS_BEFORE}"
    return f"{head}: {seconds / NUM_STEPS * 1e3:.4f} ms a step by the clock, profiler on\n" + describe_kernels(
        kernels, NUM_STEPS, num_layers
    )


def describe_kernels(kernels: Sequence[Kernel], num_steps: int, num_layers: int) -> str:
    """A table: counts, busy and idle time a step, then the kernels that take most, as means over `num_steps`."""
    if not kernels:
        return "no kernels were recorded\n"
    busy_us, idle_us, num_gaps = _busy_and_idle(kernels)
    per_step = len(kernels) / num_steps
    runs: defaultdict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        runs[kernel.name].append(kernel.end_us - kernel.start_us)
    most = sorted(runs.items(), key=lambda item: -sum(item[1]))
    lines = [
        f"kernels a step {per_step:.1f}, a step and layer {per_step / num_layers:.2f}; "
        f"busy {busy_us / num_steps:.1f} us, idle between kernels {idle_us / num_steps:.1f} us "
        f"in {num_gaps / num_steps:.1f} gaps",
        f"{'kernel':<{_NAME_WIDTH}} {'a step':>8} {'us each':>9} {'us a step':>10} {'share':>6}",
    ]
    total_us = sum(map(sum, runs.values()))
    for name, times in most[:_MOST_LISTED]:
        lines.append(
            f"{name[:_NAME_WIDTH]:<{_NAME_WIDTH}} {len(times) / num_steps:>8.1f} {sum(times) / len(times):>9.2f} "
            f"{sum(times) / num_steps:>10.1f} {sum(times) / total_us:>6.1%}"
        )
    rest = most[_MOST_LISTED:]
    if rest:
        rest_us = sum(sum(times) for _, times in rest)
        lines.append(f"{f'{len(rest)} others':<{_NAME_WIDTH}} {'':>8} {'':>9} {rest_us / num_steps:>10.1f}")
    return "\n".join(lines) + "\n"


def _busy_and_idle(kernels: Sequence[Kernel]) -> tuple[float, float, int]:
    """Microseconds in which any kernel ran and in which none did, from the first to the last, and how many gaps."""
    ordered = sorted(kernels, key=lambda kernel: kernel.start_us)
    busy = idle = 0.0
    num_gaps = 0
    reached = ordered[0].start_us
    for kernel in ordered:
        if kernel.start_us > reached:
            idle += kernel.start_us - reached
            num_gaps += 1
        begin = max(kernel.start_us, reached)
        busy += max(kernel.end_us - begin, 0.0)
        reached = max(reached, kernel.end_us)
    return busy, idle, num_gaps


def _kernels(events: Iterable[Any], device: torch.device) -> list[Kernel]:
    """What ran on the device; on a CPU the operators that no other one called."""
    return [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == device.type.upper() and event.cpu_parent is None and not event.is_user_annotation
    ]
