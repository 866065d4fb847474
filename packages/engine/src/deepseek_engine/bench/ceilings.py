"""What a device reaches at best, measured: bytes of a large copy, operations of a large matrix product."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of one device in this run.

    Attributes:
        copy_gb_s: bytes read and written by a copy that no cache holds.
        tera_ops: 10^12 operations a second by torch's name of the factors' type; float32 is IEEE, never TF32.
    """

    copy_gb_s: float
    tera_ops: Mapping[str, float]


def measure_ceilings(device: torch.device, dtypes: Iterable[torch.dtype]) -> Ceilings:
    """Takes about a second, and 8 GiB of a GPU while it lasts."""
    num_bytes, size = (2**32, 8192) if device.type == "cuda" else (2**27, 512)
    copy_gb_s = 2 * num_bytes / _median_s(_copy(num_bytes, device), device) / 1e9
    rates: dict[str, float] = {}
    for dtype in dtypes:
        seconds = _median_s(_product(size, dtype, device), device)
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds / 1e12
    return Ceilings(copy_gb_s, rates)


def _copy(num_bytes: int, device: torch.device) -> Callable[[], Tensor]:
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    if dtype is torch.int8:
        i, j = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        # The second factor column by column, as weights are stored: cuBLAS is 7 times slower by rows.
        return lambda: torch._int_mm(i, j.t())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage] - it has no public name yet
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


def _median_s(call: Callable[[], Tensor], device: torch.device, repeats: int = 9) -> float:
    time_of = _event_s if device.type == "cuda" else _clock_s
    times = [time_of(call) for _ in range(repeats + 2)]  # the first two warm up
    return sorted(times[2:])[repeats // 2]


def _clock_s(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _event_s(call: Callable[[], Tensor]) -> float:
    """By the device's own clock: the host's adds the time of a launch and of waiting."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
