"""All engines of one gateway: finds one with room for a request, and changes with the configuration."""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any

from deepseek_gateway.admit.gate import AdmissionGate, Ticket
from deepseek_gateway.admit.queue import Priority
from deepseek_gateway.errors import UpstreamError
from deepseek_gateway.policy.snapshot import Snapshot
from deepseek_gateway.route.breaker import Health, Outcome
from deepseek_gateway.route.budget import Budget, SlowestTwentieth
from deepseek_gateway.route.metrics import RoutingMetrics, UpstreamFigures
from deepseek_gateway.route.pick import pick
from deepseek_gateway.route.table import ANY, Needs, Route, RouteTable, Target
from deepseek_gateway.upstream.prober import Prober
from deepseek_gateway.upstream.upstream import Upstream, logger

MAX_EJECTED = 0.5
"""Share of the engines that may be left alone because of faults: the rest serves on, whatever it looks like."""

RETRIES_AT_FIRST = 10.0
HEDGES_KEPT = 10.0


class NoUpstreamError(UpstreamError):
    """No engine takes requests now."""


@dataclass(frozen=True, slots=True)
class RouteAsk:
    """What a request asks of routing. `affinity` is what ties it to an engine, or None."""

    model: str | None
    needs: Needs = ANY
    affinity: int | None = None
    priority: Priority = Priority.NORMAL
    org: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """A place at an engine that is held until `UpstreamPool.release`.

    `model` is the engine's own name; `is_trial` means that the engine was down, and this request tries it.
    """

    upstream: Upstream
    model: str | None
    is_trial: bool


class UpstreamPool:
    """The engines of a snapshot, and the queue before them.

    Args:
        snapshot: the configuration to begin with.
        metrics: where tries, waits and ejections are counted.
        clock: monotonic seconds.
    """

    def __init__(
        self, snapshot: Snapshot, metrics: RoutingMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        settings = snapshot.settings
        self.snapshot = snapshot
        self.metrics = metrics
        self.now = clock
        self.upstreams: list[Upstream] = []
        self.gate: AdmissionGate[Placement] = AdmissionGate(
            settings.queue_size, settings.queue_timeout_s, metrics, clock
        )
        self.retries = Budget(settings.retry_share, RETRIES_AT_FIRST, RETRIES_AT_FIRST)
        self.hedges = Budget(settings.hedge_share, HEDGES_KEPT)
        self.first_bytes = SlowestTwentieth()
        self._random = random.Random()  # noqa: S311  a choice among engines is no secret
        self._table: RouteTable[Upstream] = RouteTable(snapshot, ())
        self._prober = Prober(self)
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def is_up(self) -> bool:
        """Whether any engine takes traffic."""
        return any(upstream.is_up for upstream in self.upstreams)

    def known_models(self) -> list[str]:
        """All names that callers can use, in order, each once."""
        return self._table.names()

    def route(self, model: str | None, needs: Needs) -> Route[Upstream]:
        """Who may serve a model."""
        return self._table.route(model, needs)

    def place(self, ask: RouteAsk, tried: Collection[Upstream] = ()) -> Placement | None:
        """Take a place at the best engine; None while all that are up have no room.

        Raises:
            NoUpstreamError: none is up, or all were tried.
        """
        now_s = self.now()
        is_any_up = False
        route = self._table.route(ask.model, ask.needs)
        for tier in route.tiers:
            up: list[Target[Upstream]] = []
            rested: list[Target[Upstream]] = []
            for target in tier:
                upstream = target.upstream
                breaker = upstream.breaker
                if not breaker.may_try(now_s) or (tried and upstream in tried):
                    continue
                is_up = breaker.health is Health.UP
                is_any_up = is_any_up or is_up
                if upstream.has_room(target.model):
                    (up if is_up else rested).append(target)
            # An engine that may only be tried comes after those that are known to be up.
            if candidates := up or rested:
                loads = [target.upstream.load(now_s) for target in candidates]
                chosen = candidates[pick(candidates, loads, ask.affinity, self._random)]
                return Placement(chosen.upstream, chosen.model, chosen.upstream.begin(chosen.model))
        if is_any_up:
            return None
        times = [target.upstream.breaker.retry_at_s - now_s for tier in route.tiers for target in tier]
        wait_s = max(1.0, min(times, default=1.0))
        raise NoUpstreamError("no engine takes requests now", is_unavailable=True, retry_after_s=wait_s)

    def enter_now(self, ask: RouteAsk) -> Placement | None:
        """Take a place where nobody waits for one and an engine has room; else `enter` is the way in."""
        self.retries.earn()
        self.hedges.earn()
        if len(self.gate):
            return None
        try:
            return self.place(ask)
        except NoUpstreamError:  # `enter` says so
            return None

    async def enter(self, ask: RouteAsk) -> Placement:
        """Wait for a place.

        Raises:
            UpstreamError: no engine is up, or the queue is full or too slow.
        """
        route = f"{ask.model}\0{ask.needs.allow_cloud:d}{ask.needs.own_engine:d}"
        return await self.gate.enter(
            Ticket(ask.priority, ask.org, ask.key, route, lambda: self.place(ask), self.release)
        )

    def release(self, placement: Placement) -> None:
        """Give a place back."""
        upstream = placement.upstream
        if placement.is_trial:
            upstream.breaker.gave_up()
        upstream.end(placement.model)
        if upstream.is_leaving and not upstream.in_flight:
            self.spawn(upstream.client.close())
        if len(self.gate):
            self.gate.pump()

    def note(self, upstream: Upstream, outcome: Outcome, reason: str = "", retry_after_s: float | None = None) -> None:
        """Take what a try says of an engine."""
        was_up = upstream.is_up
        if outcome is Outcome.GOOD and was_up:
            self.metrics.attempted(upstream.name, "good")
            upstream.breaker.note(outcome, self.now(), may_eject=False)
            return
        self.metrics.attempted(upstream.name, outcome.value)
        ejected = sum(not one.is_up for one in self.upstreams)
        may_eject = ejected + 1 <= len(self.upstreams) * MAX_EJECTED
        if upstream.breaker.note(outcome, self.now(), may_eject=may_eject, retry_after_s=retry_after_s):
            self.metrics.ejected(upstream.name, outcome.value)
            logger.warning("upstream %s is down: %s", upstream.name, reason)
        elif upstream.is_up and not was_up:
            logger.info("upstream %s is up", upstream.name)

    def models_changed(self) -> None:
        """An upstream lists other models than before."""
        self._table = RouteTable(self.snapshot, self.upstreams)

    def figures(self) -> tuple[UpstreamFigures, ...]:
        """All upstreams as they are now."""
        now_s = self.now()
        return tuple(
            UpstreamFigures(
                upstream.name,
                upstream.breaker.health.value,
                upstream.in_flight,
                upstream.load(now_s) / upstream.plan.section.weight,
                None if upstream.report is None else upstream.report.waiting,
                None if upstream.report is None else upstream.report.kv_use,
            )
            for upstream in self.upstreams
        )

    async def start(self) -> None:
        """Meet every engine once, then keep looking."""
        await self.apply(self.snapshot)
        self._prober.start()

    async def apply(self, snapshot: Snapshot) -> None:
        """Put a snapshot in force.

        Engines that it leaves as they were keep their connections and state. What runs at others runs on, and their
        connections close with the last of it.
        """
        plans = [upstream.plan for upstream in self.upstreams]
        upstreams = [
            self.upstreams[plans.index(plan)] if plan in plans else Upstream.connect(plan)
            for plan in snapshot.upstreams
        ]
        new = [upstream for upstream in upstreams if upstream not in self.upstreams]
        await asyncio.gather(*(self._prober.look(upstream, learn=True) for upstream in new))
        leaving = [upstream for upstream in self.upstreams if upstream not in upstreams]
        settings = snapshot.settings
        self.gate.resize(settings.queue_size, settings.queue_timeout_s)
        self.retries.share, self.hedges.share = settings.retry_share, settings.hedge_share
        self.snapshot, self.upstreams = snapshot, upstreams
        self._table = RouteTable(snapshot, upstreams)
        names = {upstream.name for upstream in upstreams}
        for upstream in leaving:
            upstream.is_leaving = True
            if not upstream.in_flight:
                await upstream.client.close()
            if upstream.name not in names:
                self.metrics.forget(upstream.name)
        self.gate.pump()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something short on the side; `close` waits for it."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Stop looking and close all connections."""
        await self._prober.close()
        await self.gate.close()
        await asyncio.gather(*self._background, return_exceptions=True)
        for upstream in self.upstreams:
            await upstream.client.close()
