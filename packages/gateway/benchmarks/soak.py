"""Half an hour of mixed load with faults: does anything leak, is anything billed wrong, is any limit exceeded?

    python packages/gateway/benchmarks/soak.py --minutes 30 [--callers 24] [--no-redis] [--no-postgres]

One gateway process stands before two engines that count their own truth: a steady one, and one that is killed.
PostgreSQL and Redis take part where they are installed. A fault comes every few seconds; the gateway is not restarted.
It ends in a verdict for each promise and one line of JSON; the exit status is 0 when all are kept.
"""

import argparse
import asyncio
import contextlib
import json
import random
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psycopg

from deepseek_gateway.bench.targets import free_port, gateway_output
from deepseek_gateway.storage.store import open_store
from deepseek_gateway.testing.postgres import ServerNotInstalledError, postgres_server
from deepseek_gateway.testing.processes import FAKE_ENGINE, GATEWAY, RunningProcess
from deepseek_gateway.testing.redis_server import RedisServer, redis_program, redis_server
from deepseek_gateway.top.samples import Samples

FAULT_S = 4.0
"""Seconds that a fault lasts; as many pass before the next."""

REQUESTS_PER_MINUTE, CONCURRENT = 300, 3
SLOPE_MIB_PER_MINUTE = 0.5
SPARE_FDS = 16
"""Connections that pools keep: to the store, to Redis, to engines."""

SHORTEST_S = 300.0
"""Memory is not judged in less time: a gateway still warms up."""

RSS_WARM_UP = 0.3
"""Share of the time after which memory may no longer grow: buffers, caches and the heap have their size by then."""


@dataclass(slots=True)
class Seen:
    """What happened, for the verdict."""

    answers: Counter[str] = field(default_factory=Counter[str])
    limited_at: list[float] = field(default_factory=list[float])
    limited_now: int = 0
    limited_most: int = 0
    rss: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    visible: dict[str, bool] = field(default_factory=dict[str, bool])
    healed: dict[str, bool] = field(default_factory=dict[str, bool])


@dataclass(slots=True)
class Rig:
    """All processes."""

    url: str
    pid: int
    keys: dict[str, str]
    steady_url: str
    frail_port: int
    frail: RunningProcess
    redis: RedisServer | None
    postgres: Any
    store_url: str | None
    state: Path
    session: aiohttp.ClientSession
    seen: Seen = field(default_factory=Seen)


async def call(rig: Rig) -> None:
    """One request of some kind, whatever becomes of it."""
    kind = random.choices(
        ("body", "stream", "leave", "slow", "limited", "half-open", "wrong key"), (30, 30, 15, 4, 12, 5, 4)
    )[0]
    try:
        if kind == "half-open":
            await half_open(rig.url)
        elif kind == "limited":
            await limited(rig)
        else:
            await plain(rig, kind)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        rig.seen.answers[f"{kind} {type(error).__name__}"] += 1


async def plain(rig: Rig, kind: str) -> None:
    """A body or a stream; `leave` is gone after some events, `slow` reads late."""
    script = {"tokens": random.randint(1, 60), "delay_s": random.choice((0, 0, 0.005, 0.02)), "prompt_tokens": 7}
    body = {"prompt": "a b c", "max_tokens": 100, "stream": kind != "body", "fake": script}
    key = "dsk_wrong" if kind == "wrong key" else rig.keys["free"]
    async with rig.session.post(f"{rig.url}/v1/generate", json=body, headers=bearer(key)) as answer:
        rig.seen.answers[f"{kind} {answer.status}"] += 1
        events = 0
        async for _ in answer.content:
            events += 1
            if kind == "leave" and events > script["tokens"] // 2:
                return  # leaving the block drops the connection
            if kind == "slow" and events % 10 == 0:
                await asyncio.sleep(0.2)


async def limited(rig: Rig) -> None:
    """A request of a key with limits: what is admitted is counted here, independently."""
    body = {"prompt": "a", "fake": {"tokens": 5, "delay_s": 0.02, "prompt_tokens": 1}, "stream": True}
    async with rig.session.post(f"{rig.url}/v1/generate", json=body, headers=bearer(rig.keys["limited"])) as answer:
        rig.seen.answers[f"limited {answer.status}"] += 1
        if answer.status != 200:
            return
        rig.seen.limited_at.append(time.monotonic())
        await anext(aiter(answer.content), b"")
        rig.seen.limited_now += 1
        rig.seen.limited_most = max(rig.seen.limited_most, rig.seen.limited_now)
        try:
            # The engine's last word comes after this wait, so that whoever is counted here is running there.
            await asyncio.sleep(0.02)
        finally:
            rig.seen.limited_now -= 1
        await answer.read()


async def half_open(url: str) -> None:
    """A connection that begins a request and falls silent."""
    host, _, port = url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/generate HTTP/1.1\r\nhost: h\r\n")
    await asyncio.sleep(random.random() * 3)
    writer.transport.abort()


def bearer(key: str) -> dict[str, str]:
    """The header of a key."""
    return {"authorization": f"Bearer {key}"}


async def load(rig: Rig, until_s: float) -> None:
    """One caller."""
    while time.monotonic() < until_s:
        await call(rig)
        await asyncio.sleep(random.random() * 0.05)


async def metrics(rig: Rig) -> Samples:
    """What the gateway says of itself."""
    async with rig.session.get(f"{rig.url}/metrics") as answer:
        return Samples.parse(await answer.text(), time.monotonic())


async def is_ready(rig: Rig) -> bool:
    """Whether /ready says so."""
    try:
        async with rig.session.get(f"{rig.url}/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def engine_is_marked(rig: Rig) -> bool:
    """Whether the frail engine is seen to be down."""
    up = (await metrics(rig)).by("upstream_up", "upstream")
    return up.get(f"http://127.0.0.1:{rig.frail_port}") == 0


async def limits_are_alone(rig: Rig) -> bool:
    """Whether Redis is seen not to answer."""
    return (await metrics(rig)).total("shared_limits_unreachable") > 0


async def rows_wait(rig: Rig) -> bool:
    """Whether the store is seen not to take rows, or not to be read."""
    return (await metrics(rig)).total("ledger_pending_rows") > 0 or not await is_ready(rig)


async def is_refused(rig: Rig) -> bool:
    """Whether requests are refused with 503, as they must be when nothing can be journaled or counted."""
    body = {"prompt": "a", "fake": {"tokens": 1}}
    async with rig.session.post(f"{rig.url}/v1/generate", json=body, headers=bearer(rig.keys["limited"])) as answer:
        return answer.status == 503 or not await is_ready(rig)


async def inject(rig: Rig, name: str, begin: Callable[[], Any], end: Callable[[], Any], sign: Any) -> None:
    """One fault: begin it, look for its sign, end it, and wait until the sign is gone and /ready is back."""
    await asyncio.to_thread(begin)
    try:
        rig.seen.visible[name] = rig.seen.visible.get(name, False) or await within(FAULT_S, lambda: sign(rig))
    finally:
        await asyncio.to_thread(end)

    async def is_well() -> bool:
        return await is_ready(rig) and not await sign(rig)

    rig.seen.healed[name] = rig.seen.healed.get(name, True) and await within(40, is_well)


async def within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    """Whether something comes true in time."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            if await condition():
                return True
        await asyncio.sleep(0.1)
    return False


def full_disk(pid: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """The gateway's files cannot grow: what a full disk looks like from inside."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def fill() -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    def clear() -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)

    return fill, clear


def start_frail(port: int) -> RunningProcess:
    """The engine that suffers, on a port that it keeps."""
    engine = RunningProcess([*FAKE_ENGINE, "--port", str(port)])
    engine.line("http")
    return engine


async def faults(rig: Rig, until_s: float) -> None:
    """One fault after the other."""

    def kill() -> None:
        rig.frail.process.kill()
        rig.frail.process.wait()

    def start() -> None:
        rig.frail.__exit__(None, None, None)
        rig.frail = start_frail(rig.frail_port)

    fill, clear = full_disk(rig.pid)
    plans: list[tuple[str, Callable[[], Any], Callable[[], Any], Any]] = [
        ("engine killed", kill, start, engine_is_marked),
        ("journal's disk full", fill, clear, is_refused),
    ]
    if rig.redis is not None:
        plans.append(("redis paused", rig.redis.pause, rig.redis.resume, limits_are_alone))
    if rig.postgres is not None:
        plans.append(("postgresql restarted", rig.postgres.kill, rig.postgres.start, rows_wait))
    turn = 0
    while time.monotonic() + 3 * FAULT_S < until_s:
        await asyncio.sleep(FAULT_S)
        await inject(rig, *plans[turn % len(plans)])
        turn += 1


async def watch_memory(rig: Rig, until_s: float) -> None:
    """Note memory once a second."""
    began_s = time.monotonic()
    while time.monotonic() < until_s:
        pages = int(Path(f"/proc/{rig.pid}/statm").read_text().split()[1])  # noqa: ASYNC240  /proc does not block
        rig.seen.rss.append((time.monotonic() - began_s, pages * resource.getpagesize() / 2**20))
        await asyncio.sleep(1)


def slope(points: list[tuple[float, float]]) -> float:
    """Mebibytes a minute, by least squares."""
    if len(points) < 3:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope * 60


def most_in_a_minute(times: list[float]) -> float:
    """The most admissions in any span, less what the rate allows there: above the bucket is above the limit."""
    worst = 0.0
    for first in range(0, len(times), max(1, len(times) // 300)):
        for last in range(first, len(times)):
            allowed = REQUESTS_PER_MINUTE * (1 + (times[last] - times[first]) / 60)
            worst = max(worst, (last - first + 1) / allowed)
    return worst


async def verdict(rig: Rig, before_fds: int) -> dict[str, tuple[bool, object]]:
    """Each promise, whether it was kept, and the figure."""
    rested = await within(30, lambda: at_rest(rig))
    fds_before, fds = before_fds + SPARE_FDS, 0

    async def are_closed() -> bool:
        nonlocal fds
        fds = len(list(Path(f"/proc/{rig.pid}/fd").iterdir()))  # noqa: ASYNC240
        return fds <= fds_before

    has_closed = await within(30, are_closed)
    async with rig.session.get(f"{rig.steady_url}/fake/truth") as answer:
        truth = await answer.json()
    with contextlib.closing(open_store(rig.state / "gateway.sqlite3", rig.store_url)) as store:
        rows = store.ledger.rows()
    steady = [row for row in rows if row.upstream == rig.steady_url]
    billed = (sum(row.prompt_tokens for row in steady), sum(row.completion_tokens for row in steady))
    seconds = rig.seen.rss[-1][0]
    growth = slope([point for point in rig.seen.rss if point[0] > RSS_WARM_UP * seconds])
    is_short = seconds < SHORTEST_S
    return {
        "at rest afterwards: no request, no slot, no row left": (rested, rested),
        "ledger of the steady engine is its truth": (
            billed == (truth["prompt_tokens"], truth["completion_tokens"]),
            {
                "billed": billed,
                "truth": (truth["prompt_tokens"], truth["completion_tokens"]),
                "estimated": dict(Counter(row.end_reason for row in steady if row.accuracy == "estimated")),
            },
        ),
        "every request is billed once": (len({row.request_id for row in rows}) == len(rows), len(rows)),
        "concurrent requests within the limit": (rig.seen.limited_most <= CONCURRENT, rig.seen.limited_most),
        "requests a minute within the limit": (most_in_a_minute(rig.seen.limited_at) <= 1, len(rig.seen.limited_at)),
        "memory does not grow, MiB a minute": (
            is_short or growth <= SLOPE_MIB_PER_MINUTE,
            {"slope": round(growth, 3), "judged": not is_short},
        ),
        "no sockets or files left": (has_closed, {"before": before_fds, "after": fds}),
        "every fault was visible": (all(rig.seen.visible.values()), rig.seen.visible),
        "every fault healed without a restart": (all(rig.seen.healed.values()), rig.seen.healed),
    }


async def at_rest(rig: Rig) -> bool:
    """Whether nothing runs, waits or is held."""
    now = await metrics(rig)
    names = ("in_flight_requests", "upstream_in_flight_requests", "ledger_pending_rows")
    return all(now.total(name) == 0 for name in names)


async def soak(rig: Rig, options: argparse.Namespace) -> bool:
    """Load, faults, verdict."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)
    ) as rig.session:
        await within(30, lambda: is_ready(rig))
        before_fds = len(list(Path(f"/proc/{rig.pid}/fd").iterdir()))  # noqa: ASYNC240
        until_s = time.monotonic() + options.minutes * 60
        work = [load(rig, until_s) for _ in range(options.callers)]
        await asyncio.gather(*work, faults(rig, until_s), watch_memory(rig, until_s))
    async with aiohttp.ClientSession() as rig.session:  # without the idle connections of the load
        found = await verdict(rig, before_fds)
    for promise, (is_kept, figure) in found.items():
        print(f"{'kept  ' if is_kept else 'BROKEN'}  {promise}: {figure}")
    figures = {promise: {"kept": is_kept, "figure": figure} for promise, (is_kept, figure) in found.items()}
    print(json.dumps({"soak": figures, "answers": dict(rig.seen.answers), "minutes": options.minutes}))
    return all(is_kept for is_kept, _ in found.values())


def commit_for_good(store_url: str) -> None:
    """The tests' server forgets its last commits when it is killed, to be quick: this database shall not."""
    with psycopg.connect(store_url, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = on', current_database()); END $$"
        )


def _end(number: int, frame: object) -> None:  # noqa: ARG001  the signal's
    sys.exit(1)  # the blocks of `main` stop every process


def main() -> int:
    """Start everything, soak, stop everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--no-redis", action="store_true")
    parser.add_argument("--no-postgres", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    with contextlib.ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gw-soak-")))
        env = {"GATEWAY_HEAD_TIMEOUT_S": "2", "GATEWAY_SEND_TIMEOUT_S": "10", "GATEWAY_ACCESS_LOG": "off"}
        redis = None if options.no_redis or redis_program() is None else stack.enter_context(redis_server())
        if redis is not None:
            env["GATEWAY_REDIS_URL"] = redis.url
        postgres, store_url = None, None
        if not options.no_postgres:
            with contextlib.suppress(ServerNotInstalledError):
                postgres = stack.enter_context(postgres_server())
                store_url = env["GATEWAY_STORE_URL"] = postgres.new_database(migrated=False)
                commit_for_good(store_url)
        gateway_output("migrate", "--state", str(state), env=env)
        limits = ("--rpm", str(REQUESTS_PER_MINUTE), "--concurrent", str(CONCURRENT))
        keys = {
            name: json.loads(
                gateway_output("key", "create", "--state", str(state), "--name", name, *more, "--json", env=env)
            )["key"]
            for name, more in (("free", ()), ("limited", limits))
        }
        steady = stack.enter_context(RunningProcess([*FAKE_ENGINE, "--port", "0"]))
        steady_url, frail_port = steady.line("http"), free_port()
        command = ["serve", "--state", str(state), "--port", "0", "--upstream", steady_url]
        frail = start_frail(frail_port)
        command += ["--upstream", f"http://127.0.0.1:{frail_port}"]
        gateway = stack.enter_context(RunningProcess([*GATEWAY, *command], env))
        rig = Rig(
            url=gateway.line("listening on").split()[2],
            pid=gateway.process.pid,
            keys=keys,
            steady_url=steady_url,
            frail_port=frail_port,
            frail=frail,
            redis=redis,
            postgres=postgres,
            store_url=store_url,
            state=state,
            session=None,  # type: ignore[arg-type]
        )
        try:
            return 0 if asyncio.run(soak(rig, options)) else 1
        finally:
            rig.frail.__exit__(None, None, None)


if __name__ == "__main__":
    sys.exit(main())
