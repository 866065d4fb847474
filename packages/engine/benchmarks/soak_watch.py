"""What the soak test sees of the server from outside: its processes, its metrics, its log."""

import asyncio
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

_ACCESS_LINE = re.compile(r"deepseek_engine\.access id=(soak-\S+) ")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """The server's processes at one time: the one that speaks HTTP, the core, and all of them with their helpers."""

    at_s: float
    api_mib: float
    core_mib: float
    total_mib: float
    num_fds: int
    num_threads: int
    num_processes: int


def take_sample(process: psutil.Process, start_s: float) -> Sample:
    """Look at a server and its children now."""
    tree = [process, *process.children(recursive=True)]
    sizes: list[float] = []
    num_fds = num_threads = 0
    for each in tree:
        try:
            with each.oneshot():
                sizes.append(each.memory_info().rss / MIB)
                num_fds += each.num_fds()
                num_threads += each.num_threads()
        except psutil.NoSuchProcess:
            continue  # a helper that has just ended
    core_mib = max(sizes[1:], default=0.0)  # the helpers hold no model
    at_s = time.monotonic() - start_s
    return Sample(at_s, sizes[0], core_mib, sum(sizes), num_fds, num_threads, len(sizes))


def growth_mib_per_h(samples: list[Sample], attribute: str, from_s: float) -> float:
    """Slope of a memory series after its warm-up: Theil and Sen's median of slopes, which single peaks do not move."""
    points = [(sample.at_s, getattr(sample, attribute)) for sample in samples if sample.at_s >= from_s]
    slopes = [
        (later[1] - sooner[1]) / (later[0] - sooner[0])
        for index, sooner in enumerate(points)
        for later in points[index + 1 :]
    ]
    return 3600 * statistics.median(slopes) if slopes else 0.0


async def read_metrics(session: aiohttp.ClientSession, base_url: str) -> dict[str, float]:
    """The engine's metrics, those of several labels summed up, without the prefix."""
    sums: Counter[str] = Counter()
    async with session.get(f"{base_url}/metrics") as response:
        response.raise_for_status()
        for line in (await response.text()).splitlines():
            sample, _, value = line.rpartition(" ")
            name = sample.split("{")[0]
            if name.startswith("deepseek_engine_") and not name.endswith(("_created", "_bucket")):
                sums[name.removeprefix("deepseek_engine_")] += float(value)
    return dict(sums)


async def wait_idle(session: aiohttp.ClientSession, base_url: str, timeout_s: float) -> dict[str, float]:
    """Metrics once nothing runs, waits or holds a block, or as they are after the timeout."""
    end_s = time.monotonic() + timeout_s
    while True:
        metrics = await read_metrics(session, base_url)
        busy = ("requests_running", "requests_waiting", "kv_blocks_used")
        if not any(metrics[name] for name in busy) or time.monotonic() > end_s:
            return metrics
        await asyncio.sleep(0.2)


def ends_by_id(log: Path) -> Counter[str]:
    """How many access lines each request has."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        return Counter(found[1] for line in lines if (found := _ACCESS_LINE.search(line)))


def unusual_lines(log: Path) -> list[str]:
    """Warnings and errors of the log."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        return [line.strip() for line in lines if re.search(r" (WARNING|ERROR|CRITICAL) |^Traceback", line)]


def series(samples: Iterable[Sample]) -> str:
    """The samples as a table."""
    rows = [f"{'s':>6} {'api MiB':>9} {'core MiB':>9} {'all MiB':>9} {'fds':>5} {'threads':>8} {'processes':>10}"]
    rows += [
        f"{each.at_s:>6.0f} {each.api_mib:>9.1f} {each.core_mib:>9.1f} {each.total_mib:>9.1f} {each.num_fds:>5} "
        f"{each.num_threads:>8} {each.num_processes:>10}"
        for each in samples
    ]
    return "\n".join(rows)
