"""What soft limits have to say: a log line, a metric and a row, once a window and counter."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor

from deepseek_gateway.errors import GatewayError
from deepseek_gateway.limits.limiter import Crossing, Reservation, name_of
from deepseek_gateway.storage.rules import LimitEvent, RuleTable

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 10_000
MAX_WAITING = 1_000
RETRY_S = 5.0


class Alerts:
    """Tells about soft limits that were reached.

    Args:
        rules: where events are kept.
        executor: where the store may block.
        count: called with the kind of each new event.
    """

    def __init__(self, rules: RuleTable, executor: Executor, count: Callable[[str], None]) -> None:
        self._rules = rules
        self._executor = executor
        self._count = count
        self._told: OrderedDict[tuple[str, float], None] = OrderedDict()
        self._waiting: list[LimitEvent] = []
        self._writer: asyncio.Task[None] | None = None

    def note(self, reservation: Reservation) -> None:
        """Tell what a request went over, unless it was told in this window."""
        crossed, reservation.crossed = reservation.crossed, []
        for crossing in crossed:
            self._note(crossing, reservation.request_id)

    async def flush(self) -> None:
        """Wait until what was told is in the store, or cannot be written now."""
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    async def close(self) -> None:
        """Write what waits, once."""
        if self._writer is not None and not self._writer.done():
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        if self._waiting:
            await self._write()

    def _note(self, crossing: Crossing, request_id: str) -> None:
        now = time.time()
        since = crossing.window.start if crossing.window is not None else now // 60 * 60
        name = crossing.meter.counter, since
        if name in self._told:
            return
        self._told[name] = None
        while len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        rule, scope = crossing.meter.rule, crossing.meter.scope
        taken = rule.kind.shown(crossing.taken)
        logger.warning("soft limit reached: %s at %s, request %s", name_of(rule), taken, request_id)
        self._count(rule.kind.value)
        event = LimitEvent(
            rule_id=rule.id,
            counter=crossing.meter.counter,
            since=since,
            kind=rule.kind.value,
            amount=rule.limit,
            taken=crossing.taken,
            org_id=scope.org_id,
            team_id=scope.team_id,
            user_id=scope.user_id,
            key_id=scope.key_id,
            model=scope.model,
            request_id=request_id,
            created=now,
        )
        if len(self._waiting) < MAX_WAITING:  # beyond it the log has them
            self._waiting.append(event)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_until_done())

    async def _write_until_done(self) -> None:
        while self._waiting:
            if not await self._write():
                await asyncio.sleep(RETRY_S)

    async def _write(self) -> bool:
        events = list(self._waiting)
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._rules.insert_events, events)
        except GatewayError as error:
            logger.warning("%d limit events cannot be written now: %s", len(events), error)
            return False
        del self._waiting[: len(events)]
        return True
