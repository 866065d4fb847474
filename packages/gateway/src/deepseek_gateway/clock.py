"""Notices that the machine's clock was set.

Limits, time-outs and breakers run on monotonic time and do not care; days, expiries and dates of rows follow the clock.
"""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

STEP_S = 1.0
"""Seconds between two looks by which the clocks must part: keeping a clock right by slewing moves it far less."""

TOLD_S = 15.0
"""Seconds that a step is told of."""


class ClockWatch:
    """Compares the wall clock with monotonic time, at each `look`."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._apart_s = wall() - monotonic()
        self._step_s = 0.0
        self._told_until_s = 0.0
        self.num_steps = 0

    def look(self) -> None:
        """See whether the clock was set since the last look."""
        now_s = self._monotonic()
        apart_s = self._wall() - now_s
        step_s, self._apart_s = apart_s - self._apart_s, apart_s
        if abs(step_s) >= STEP_S:
            self.num_steps += 1
            self._step_s, self._told_until_s = step_s, now_s + TOLD_S
            logger.warning("the clock was set by %+.1f s: days and expiries follow it, time-outs do not", step_s)

    @property
    def fault(self) -> str | None:
        """What happened a moment ago, or None."""
        return f"the clock was set by {self._step_s:+.1f} s" if self._monotonic() < self._told_until_s else None
