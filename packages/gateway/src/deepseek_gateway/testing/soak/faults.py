"""The faults of a soak: begin one, see it in /ready and in the metrics, end it, and wait until it is over."""

import asyncio
import contextlib
import resource
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from deepseek_gateway.testing.soak.rig import Rig
from deepseek_gateway.testing.soak.seen import FaultSeen
from deepseek_gateway.top.samples import Samples

FAULT_S = 5.0
"""Seconds that a fault lasts; as many pass before the next."""

HEAL_S = 60.0
STEP_S = 3600


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind. `is_told` is its sign in what /ready says, `is_counted` its sign in the metrics."""

    name: str
    begin: Callable[[], object]
    end: Callable[[], object]
    is_told: Callable[[str], bool]
    is_counted: Callable[[Samples], bool]


def faults_of(rig: Rig) -> list[Fault]:
    """Those that this machine can have."""
    frail_url = f"http://127.0.0.1:{rig.frail_port}"

    def engine_is_down(now: Samples) -> bool:
        return now.by("upstream_up", "upstream").get(frail_url) == 0

    def has(word: str) -> Callable[[str], bool]:
        return lambda told: word in told

    found = [
        Fault("engine killed", rig.kill_engine, rig.start_engine, has("engine"), engine_is_down),
        Fault(
            "journal's disk full",
            lambda: _limit_files(rig.pid, 4096),
            lambda: _limit_files(rig.pid, resource.RLIM_INFINITY),
            has("journal"),
            lambda now: now.total("journal_broken") > 0,
        ),
    ]
    if rig.redis is not None:
        alone = "shared_limits_unreachable"
        found.append(
            Fault("redis paused", rig.redis.pause, rig.redis.resume, has("Redis"), lambda now: now.total(alone) > 0)
        )
    if rig.postgres is not None:
        found.append(
            Fault(
                "postgresql restarted",
                rig.postgres.kill,
                rig.postgres.start,
                has("store"),
                lambda now: now.total("store_unreachable") > 0,
            )
        )
    if rig.clock is not None:
        for seconds, way in ((STEP_S, "forwards"), (-STEP_S, "back")):
            found.append(_clock_fault(rig, seconds, way))
    return found


def _clock_fault(rig: Rig, seconds: int, way: str) -> Fault:
    clock, steps = rig.clock, 0.0
    assert clock is not None

    def is_counted(now: Samples) -> bool:
        """Whether there are more steps than before: a counter does not go back when the clock does."""
        nonlocal steps
        more = now.total("clock_steps") > steps
        if more and clock.offset.read_bytes().strip(b"\0") == b"":
            steps = now.total("clock_steps")
            return False
        return more

    return Fault(
        f"clock set {way}", lambda: clock.set(seconds), lambda: clock.set(0), lambda told: "clock" in told, is_counted
    )


def _limit_files(pid: int, limit: int) -> None:
    """Let the gateway's files grow no further than this: a full disk, seen from inside."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


async def inject_all(rig: Rig, until_s: float) -> None:
    """One fault after the other, round and round, each kind at least once."""
    plans = faults_of(rig)
    rig.seen.faults = {fault.name: FaultSeen() for fault in plans}
    turn = 0
    while turn < len(plans) or time.monotonic() + 3 * FAULT_S < until_s:
        await asyncio.sleep(FAULT_S)
        await inject(rig, plans[turn % len(plans)])
        turn += 1


async def inject(rig: Rig, fault: Fault) -> None:
    """Begin, look, end, and wait until nothing of it shows any more."""
    seen = rig.seen.faults[fault.name]
    seen.times += 1
    await asyncio.to_thread(fault.begin)
    began_s = time.monotonic()
    in_ready = in_metrics = False

    async def shows() -> bool:
        nonlocal in_ready, in_metrics
        in_ready |= any(map(fault.is_told, await rig.faults()))
        in_metrics |= fault.is_counted(await rig.metrics())
        return in_ready and in_metrics

    try:
        await within(2 * FAULT_S, shows)
        await asyncio.sleep(max(0.0, FAULT_S - (time.monotonic() - began_s)))
    finally:
        await asyncio.to_thread(fault.end)
    seen.in_ready |= in_ready
    seen.in_metrics |= in_metrics

    async def is_over() -> bool:
        return not await rig.faults() and not fault.is_counted(await rig.metrics())

    ended_s = time.monotonic()
    seen.is_healed &= await within(HEAL_S, is_over)
    seen.heal_s = max(seen.heal_s, time.monotonic() - ended_s)


async def within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    """Whether something comes true in time; a gateway that does not answer is asked again."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            if await condition():
                return True
        await asyncio.sleep(0.1)
    return False
