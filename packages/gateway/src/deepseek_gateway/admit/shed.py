"""Load shedding: turn requests away at once when the process or every engine behind it is behind."""

import asyncio
import time
from collections.abc import Callable, Iterable

from deepseek_gateway.admit.queue import Priority

TICK_S = 0.1
SMOOTHING = 0.3

TOLERANCE = {Priority.HIGH: 2.0, Priority.NORMAL: 1.0, Priority.LOW: 0.5}
"""How much of a threshold each class sees: the lowest is turned away first."""


class LoopLag:
    """How late the event loop runs what is due, smoothed. `run` measures until it is cancelled."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds = 0.0

    async def run(self) -> None:
        """Sleep, and see how much later it gets."""
        while True:
            due_s = self._clock() + TICK_S
            await asyncio.sleep(TICK_S)
            self.note(max(0.0, self._clock() - due_s))

    def note(self, late_s: float) -> None:
        """Take one measure."""
        self.seconds += SMOOTHING * (late_s - self.seconds)


def shed_reason(
    priority: Priority, lag_s: float, max_lag_s: float, waiting: Iterable[float | None], max_waiting: int
) -> str | None:
    """Why a request must be turned away: `loop_lag` or `engine_queue`; None when it may stay.

    Args:
        priority: its class.
        lag_s: of the event loop.
        max_lag_s: the most for the normal class; 0 for no limit.
        waiting: requests that wait at each engine that could serve it, None where that is not known.
        max_waiting: the most at every engine for the normal class; 0 for no limit.
    """
    tolerance = TOLERANCE[priority]
    if max_lag_s and lag_s > max_lag_s * tolerance:
        return "loop_lag"
    if not max_waiting:
        return None
    queues = list(waiting)
    if queues and all(number is not None and number >= max_waiting * tolerance for number in queues):
        return "engine_queue"
    return None
