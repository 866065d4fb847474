"""The admission queue at work: places a request at an engine, or lets it wait for its turn."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from deepseek_gateway.admit.errors import NotAdmittedError
from deepseek_gateway.admit.queue import FairQueue, Priority, Waiter
from deepseek_gateway.errors import UpstreamError

TICK_S = 0.05
"""Seconds between looks for deadlines, and for engines that have rested."""

RATE_SAMPLES = 64
MAX_RETRY_AFTER_S = 60.0

Place = TypeVar("Place")


class QueueMetrics(Protocol):
    """Where waits are counted."""

    def waited(self, priority: str, seconds: float, outcome: str) -> None:
        """One wait is over: `placed`, `timeout`, `full`, `left` or `shutdown`."""
        ...


@dataclass(frozen=True, slots=True)
class Ticket(Generic[Place]):
    """A request at the gate.

    `place` gives its place at an engine, taken at once, or None while its engines are full. `give_back` returns one
    that nobody wants any more.
    """

    priority: Priority
    org: str
    key: str
    route: str
    place: Callable[[], Place | None]
    give_back: Callable[[Place], None]


_Item = tuple[Ticket[Place], "asyncio.Future[Place]"]


class AdmissionGate(Generic[Place]):
    """One gateway's queue.

    Args:
        capacity: most that wait.
        timeout_s: longest wait.
        metrics: where waits are counted.
        clock: monotonic seconds.
    """

    def __init__(
        self, capacity: int, timeout_s: float, metrics: QueueMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.timeout_s = timeout_s
        self._queue: FairQueue[_Item[Place]] = FairQueue(capacity)
        self._metrics = metrics
        self._clock = clock
        self._placed_at: deque[float] = deque(maxlen=RATE_SAMPLES)
        self._is_draining = False
        self._ticker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def length(self, priority: Priority) -> int:
        """How many of a class wait."""
        return self._queue.length(priority)

    def resize(self, capacity: int, timeout_s: float) -> None:
        """Take new bounds; those who wait stay."""
        self._queue.capacity, self.timeout_s = capacity, timeout_s

    async def enter(self, ticket: Ticket[Place]) -> Place:
        """Wait for a place.

        Raises:
            NotAdmittedError: the queue is full, the wait took too long, or the gateway stops.
            UpstreamError: what `ticket.place` raises while nobody waits: no engine is up.
        """
        if not self._queue:
            place = ticket.place()
            if place is not None:
                return place
        return await self._wait(ticket)

    def pump(self) -> None:
        """Something became free: let go who can."""
        while self._queue and self._queue.pop(self._try) is not None:
            pass

    def drain(self) -> None:
        """Send all who wait away, and who comes: the gateway stops."""
        self._is_draining = True
        for waiter in self._queue.clear():
            self._refuse(waiter, "shutdown", NotAdmittedError("the gateway stops", "shutting_down", 5.0))

    async def close(self) -> None:
        """Stop looking at the clock."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)

    def retry_after_s(self) -> float:
        """How long the queue needs, at the rate at which it has been getting shorter."""
        if len(self._placed_at) < 2:
            return min(self.timeout_s, 5.0)
        took_s = max(self._clock() - self._placed_at[0], 0.001)
        return min(max(1.0, (len(self._queue) + 1) * took_s / len(self._placed_at)), MAX_RETRY_AFTER_S)

    async def _wait(self, ticket: Ticket[Place]) -> Place:
        if self._is_draining:
            raise NotAdmittedError("the gateway stops", "shutting_down", 5.0)
        if self._queue.is_full:
            self._metrics.waited(ticket.priority, 0.0, "full")
            wait_s = math.ceil(self.retry_after_s())
            message = f"{len(self._queue)} requests wait for an engine, the most: try again in {wait_s} s"
            raise NotAdmittedError(message, "queue_full", wait_s)
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        now_s = self._clock()
        waiter = Waiter(
            (ticket, future), ticket.priority, ticket.org, ticket.key, ticket.route, now_s, now_s + self.timeout_s
        )
        self._queue.push(waiter)
        self.pump()
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.create_task(self._tick())
        try:
            return await future
        except asyncio.CancelledError:
            if self._queue.remove(waiter):
                self._metrics.waited(ticket.priority, self._clock() - now_s, "left")
            elif future.done() and not future.cancelled() and future.exception() is None:
                ticket.give_back(future.result())
            raise

    def _try(self, waiter: Waiter[_Item[Place]]) -> bool:
        ticket, future = waiter.item
        try:
            place = ticket.place()
        except UpstreamError:
            return False  # no engine is up: one may come back before the deadline
        if place is None:
            return False
        if future.done():
            ticket.give_back(place)
            return True
        now_s = self._clock()
        self._placed_at.append(now_s)
        self._metrics.waited(waiter.priority, now_s - waiter.since_s, "placed")
        future.set_result(place)
        return True

    async def _tick(self) -> None:
        """Runs while somebody waits."""
        while self._queue:
            await asyncio.sleep(TICK_S)
            for waiter in self._queue.late(self._clock()):
                wait_s = math.ceil(self.retry_after_s())
                message = f"no engine was free for {self.timeout_s:g} s: try again in {wait_s} s"
                self._refuse(waiter, "timeout", NotAdmittedError(message, "queue_timeout", wait_s))
            self.pump()

    def _refuse(self, waiter: Waiter[_Item[Place]], outcome: str, error: NotAdmittedError) -> None:
        _, future = waiter.item
        self._metrics.waited(waiter.priority, self._clock() - waiter.since_s, outcome)
        if not future.done():
            future.set_exception(error)
