"""What a soak promises, and whether it was kept."""

import asyncio
import contextlib
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.storage.store import open_store
from deepseek_gateway.testing.soak.faults import within
from deepseek_gateway.testing.soak.rig import CONCURRENT, REQUESTS_PER_MINUTE, Rig

SLOPE_MIB_PER_MINUTE = 0.5
SPARE_FILES = 16
"""Connections that pools keep: to the store, to Redis, to engines."""

SHORTEST_S = 300.0
"""Memory is not judged in less time: a gateway still warms up."""

RSS_WARM_UP = 0.3
"""Share of the time after which memory may no longer grow: buffers, caches and the heap have their size by then."""

LONGEST_REQUEST_S = 180.0
"""No request of the load lasts longer, whatever the wall clock did meanwhile."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One row of the table."""

    name: str
    is_kept: bool
    figure: str


async def verdict(rig: Rig, files_before: int, wanted_disconnects: int) -> list[Promise]:
    """Each promise, whether it was kept, and the figure."""
    seen = rig.seen
    rested = await within(60, lambda: _at_rest(rig))
    files_after = await _files(rig, files_before + SPARE_FILES)
    slots = await _free_slots(rig)
    await within(30, lambda: _at_rest(rig))
    truth, rows = await rig.truth(), await asyncio.to_thread(_rows, rig)
    steady = [row for row in rows if row.upstream == rig.steady_url]
    billed = sum(row.prompt_tokens for row in steady), sum(row.completion_tokens for row in steady)
    estimated = dict(Counter(row.end_reason for row in steady if row.accuracy == "estimated"))
    latencies = [row.latency_ms / 1000 for row in rows]
    least, most = min(latencies, default=0.0), max(latencies, default=0.0)
    rate = most_in_a_minute(seen.limited_at, REQUESTS_PER_MINUTE)
    kept, figure = _memory(seen.rss)
    promises = [
        Promise("disconnects", seen.disconnects >= wanted_disconnects, f"{seen.disconnects} of {wanted_disconnects}"),
        Promise("at rest: nothing runs, waits or is pending", rested, "yes" if rested else "no"),
        Promise("slots are all free", slots >= CONCURRENT, f"{slots} of {CONCURRENT}"),
        Promise("sockets and files", files_after <= files_before + SPARE_FILES, f"{files_before} -> {files_after}"),
        Promise("memory, MiB a minute", kept, figure),
        Promise("ledger = engine's truth", billed == truth, f"billed {billed}, truth {truth}, estimated {estimated}"),
        Promise("each request billed once", len({row.request_id for row in rows}) == len(rows), f"{len(rows)} rows"),
        Promise("concurrent within the limit", seen.limited_most <= CONCURRENT, f"{seen.limited_most} of {CONCURRENT}"),
        Promise("rate within the limit", rate <= 1, f"{rate:.0%} at most, {len(seen.limited_at)} let in"),
        Promise("latencies are true", least >= 0 and most < LONGEST_REQUEST_S, f"{least:.3f} to {most:.1f} s"),
        _ended("half-open connections ended", seen.half_open_ended, seen.half_open_kept),
        _ended("callers that do not read ended", seen.stuck_ended, seen.stuck_kept),
    ]
    for name, fault in seen.faults.items():
        promises += [
            Promise(f"{name}: in /ready", fault.in_ready, f"{fault.times} times"),
            Promise(f"{name}: in the metrics", fault.in_metrics, ""),
            Promise(f"{name}: healed", fault.is_healed, f"within {fault.heal_s:.1f} s"),
        ]
    return promises


def table(promises: Sequence[Promise]) -> str:
    """For people."""
    width = max(len(promise.name) for promise in promises)
    return "\n".join(
        f"{'kept' if promise.is_kept else 'BROKEN':<7} {promise.name:<{width}}  {promise.figure}".rstrip()
        for promise in promises
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Growth a minute, by least squares; times are seconds."""
    if len(points) < 3:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope * 60


def most_in_a_minute(times: Sequence[float], per_minute: int) -> float:
    """The most admissions in any span, as a share of what a bucket of one minute lets in there."""
    worst = 0.0
    for first in range(0, len(times), max(1, len(times) // 300)):
        for last in range(first, len(times)):
            allowed = per_minute * (1 + (times[last] - times[first]) / 60)
            worst = max(worst, (last - first + 1) / allowed)
    return worst


def _ended(name: str, ended: int, kept: int) -> Promise:
    return Promise(name, kept == 0, f"{ended} of {ended + kept}")


def _memory(rss: Sequence[tuple[float, float]]) -> tuple[bool, str]:
    seconds = rss[-1][0]
    growth = slope([point for point in rss if point[0] > RSS_WARM_UP * seconds])
    if seconds < SHORTEST_S:
        return True, f"{growth:+.2f}, {rss[-1][1]:.0f} MiB now; not judged in less than {SHORTEST_S / 60:.0f} minutes"
    return growth <= SLOPE_MIB_PER_MINUTE, f"{growth:+.3f} of {SLOPE_MIB_PER_MINUTE}, {rss[-1][1]:.0f} MiB now"


async def _at_rest(rig: Rig) -> bool:
    """Whether nothing runs, waits or is held."""
    now = await rig.metrics()
    names = ("in_flight_requests", "upstream_in_flight_requests", "ledger_pending_rows", "limits_settling")
    return all(now.total(name) == 0 for name in names)


async def _files(rig: Rig, allowed: int) -> int:
    """Open files of the gateway, once they are few, or as they stay."""

    async def are_few() -> bool:
        return await asyncio.to_thread(lambda: rig.num_files) <= allowed

    await within(30, are_few)
    return rig.num_files


async def _free_slots(rig: Rig) -> int:
    """How many requests of the limited key can run at once; its rate may have to come back first."""
    most = 0

    async def all_run() -> bool:
        nonlocal most
        body = {"prompt": "a", "stream": True, "fake": {"tokens": 20, "delay_s": 0.05}}
        headers = {"authorization": f"Bearer {rig.keys['limited']}"}
        async with contextlib.AsyncExitStack() as stack:
            asking = [rig.session.post(f"{rig.url}/v1/generate", json=body, headers=headers) for _ in range(CONCURRENT)]
            answers = await asyncio.gather(*map(stack.enter_async_context, asking))
            statuses: list[int] = [answer.status for answer in answers]
            most = max(most, statuses.count(200))
            for answer in answers:
                with contextlib.suppress(aiohttp.ClientError):
                    await answer.read()
        return most >= CONCURRENT

    await within(60, all_run)
    return most


def _rows(rig: Rig) -> list[LedgerRow]:
    with contextlib.closing(open_store(rig.state / "gateway.sqlite3", rig.store_url)) as store:
        return store.ledger.rows()
