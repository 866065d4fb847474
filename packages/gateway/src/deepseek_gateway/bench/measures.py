"""The measures: each is taken of every target in turn, in each round, so that the machine's drift hits all alike."""

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from deepseek_gateway.bench.load import Connection, Tally, closed_loop, open_loop, percentile, together
from deepseek_gateway.bench.targets import Target

Figures = dict[str, float]

STEADY_EVERY_S = 0.02
STEADY_SUM = 50_000
"""Terms of a sum that takes about a millisecond."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int = 3
    seconds: float = 4.0
    rates: tuple[float, ...] = (50.0, 1000.0)
    callers: tuple[int, ...] = (1, 16, 64, 512)
    paced_streams: int = 50
    burst_streams: int = 16
    first_tokens: int = 50
    held_streams: int = 1000
    starts: int = 3
    keys: tuple[int, ...] = (10, 100_000)
    key_rounds: int = 7
    """Numbers of keys take turns, each time with a gateway that starts anew: single starts say little."""

    @classmethod
    def quick(cls) -> "Plan":
        """Little of everything: whether it runs, not how fast."""
        return cls(1, 0.2, (50.0,), (1, 16), 4, 4, 5, 20, 1, (10,), 1)


@dataclass(slots=True)
class Results:
    """Figures by target and measure, one for each round."""

    rounds: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list[float]))
    )
    faults: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, target: str, figures: Figures) -> None:
        """Note the figures of one round."""
        for name, value in figures.items():
            self.rounds[target][name].append(value)

    def median(self, target: str, name: str) -> float | None:
        """Of the rounds; None when it was not measured."""
        values = self.rounds.get(target, {}).get(name)
        return statistics.median(values) if values else None


Measure = Callable[[Target], Awaitable[Figures]]


def measures(plan: Plan) -> Iterator[tuple[str, Measure]]:
    """All measures by name, in the order in which they are taken."""
    yield "machine", lambda target: _steadiness(target, plan)
    for rate in plan.rates:
        yield f"rate_{rate:g}", lambda target, rate=rate: _latency(target, rate, plan)
    for callers in plan.callers:
        yield f"callers_{callers}", lambda target, callers=callers: _throughput(target, callers, plan)
    yield "paced", lambda target: _paced(target, plan)
    yield "burst", lambda target: _burst(target, plan)
    yield "first_token", lambda target: _first_token(target, plan)
    yield "held", lambda target: _held(target, plan)


def is_beyond(target: Target, name: str, results: Results) -> bool:
    """Whether a rate is more than a target can do: then there is nothing to time."""
    if not name.startswith("rate_"):
        return False
    capacity = results.median(target.name, "warm_rps")
    return capacity is not None and float(name.removeprefix("rate_")) > 0.9 * capacity


async def warm_up(target: Target, seconds: float) -> Figures:
    """Bring connections, caches and code to temperature; tells what the target can do."""
    tally = await closed_loop(target.endpoint, "bench", 16, seconds, stream=False)
    await closed_loop(target.endpoint, "bench", 4, seconds / 2, stream=True)
    return {"warm_rps": len(tally.answers) / tally.seconds}


async def _steadiness(target: Target, plan: Plan) -> Figures:
    """How much slower this machine itself gets at its slowest hundredth: CPU of one piece of work, time and again.

    Hosts of virtual machines slow them down for moments, which no guest is told of; every p99 here has that in it.
    """
    if target.child is not None:
        return {}
    costs: list[float] = []
    for _ in range(max(1, int(plan.seconds / STEADY_EVERY_S))):
        await asyncio.sleep(STEADY_EVERY_S)
        before_s = time.thread_time()
        sum(range(STEADY_SUM))
        costs.append(time.thread_time() - before_s)
    costs.sort()
    return {"machine_p99_over_p50": percentile(costs, 99) / percentile(costs, 50)}


async def _latency(target: Target, rate: float, plan: Plan) -> Figures:
    tally = await open_loop(target.endpoint, "bench", rate, plan.seconds)
    values, name = tally.total_ms, f"rate_{rate:g}"
    return {
        f"{name}_mean_ms": statistics.fmean(values),
        f"{name}_p50_ms": percentile(values, 50),
        f"{name}_p99_ms": percentile(values, 99),
    }


async def _throughput(target: Target, callers: int, plan: Plan) -> Figures:
    tally, cpu_s = await _costed(
        target, lambda: closed_loop(target.endpoint, "bench", callers, plan.seconds, stream=False)
    )
    return {
        f"callers_{callers}_rps": len(tally.answers) / tally.seconds,
        f"callers_{callers}_cpu_us": cpu_s * 1e6 / len(tally.answers),
    }


async def _paced(target: Target, plan: Plan) -> Figures:
    """50 streams of 200 chunks, one every 10 ms: what a chunk costs where each must be sent on by itself."""
    tally, cpu_s = await _costed(target, lambda: together(target.endpoint, "bench-paced", plan.paced_streams))
    return {"paced_cpu_us_per_chunk": cpu_s * 1e6 / tally.chunks, "paced_chunks_per_s": tally.chunks / tally.seconds}


async def _burst(target: Target, plan: Plan) -> Figures:
    """Streams as fast as they go: the most chunks that pass."""
    load = lambda: closed_loop(target.endpoint, "bench", plan.burst_streams, plan.seconds, stream=True)  # noqa: E731
    tally, cpu_s = await _costed(target, load)
    return {"burst_cpu_us_per_chunk": cpu_s * 1e6 / tally.chunks, "burst_chunks_per_s": tally.chunks / tally.seconds}


async def _first_token(target: Target, plan: Plan) -> Figures:
    raw, tally = target.endpoint.request("bench", stream=True), Tally()
    connection = await Connection.open(target.endpoint)
    for _ in range(plan.first_tokens):
        tally.answers.append(await connection.ask(raw))
    connection.close()
    values = tally.first_ms
    return {
        "ttft_mean_ms": statistics.fmean(values),
        "ttft_p50_ms": percentile(values, 50),
        "ttft_p99_ms": percentile(values, 99),
    }


async def _held(target: Target, plan: Plan) -> Figures:
    """Streams that stay open: how many of them have their first chunk within 30 s, and the memory that each takes."""
    before = 0.0 if target.child is None else target.child.rss_mib()
    raw, connections = target.endpoint.request("bench-held", stream=True), list[Connection]()
    try:
        for _ in range(plan.held_streams):
            connection = await Connection.open(target.endpoint)
            connection.start(raw).add_done_callback(lambda done: done.cancelled() or done.exception())
            connections.append(connection)
        firsts = [asyncio.create_task(connection.first.wait()) for connection in connections]
        done, waiting = await asyncio.wait(firsts, timeout=30)
        for task in waiting:
            task.cancel()
        after = 0.0 if target.child is None else target.child.rss_mib()
    finally:
        for connection in connections:
            connection.close()
    await asyncio.sleep(0.5)  # the streams end at the engine before the next measure begins
    return {
        "held_streams": float(len(done)),
        "held_kib_per_stream": max(0.0, after - before) * 1024 / plan.held_streams,
    }


async def _costed(target: Target, load: Callable[[], Awaitable[Tally]]) -> tuple[Tally, float]:
    before_s = target.cpu_s()
    tally = await load()
    return tally, target.cpu_s() - before_s
