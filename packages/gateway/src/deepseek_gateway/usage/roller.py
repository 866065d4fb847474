"""Makes the sums of hours that are over, in the background of a gateway."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor

from deepseek_gateway.background import forever
from deepseek_gateway.errors import StoreUnavailableError
from deepseek_gateway.storage.rollups import RollupTable
from deepseek_gateway.usage.zones import HOUR_S

logger = logging.getLogger(__name__)

SETTLED_S = 300.0
"""Seconds after an hour's end: most of its requests are settled then. Later ones make its sums due again."""

ROLL_EVERY_S = 60.0
AT_A_TIME = 100


class UsageRoller:
    """The job of one gateway. Several of one store do no harm: what one has done is not due for the next.

    Args:
        rollups: the sums.
        executor: where the store may block; not that of the ledger.
        wall: Unix time.
    """

    def __init__(self, rollups: RollupTable, executor: Executor, wall: Callable[[], float] = time.time) -> None:
        self._rollups = rollups
        self._executor = executor
        self._wall = wall

    async def run(self) -> None:
        """Work until cancelled."""
        pause_s = lambda: ROLL_EVERY_S * random.uniform(0.5, 1.0)  # noqa: E731, S311  so that gateways take turns
        await forever(pause_s, self._roll_if_there, "adding up hours")

    async def _roll_if_there(self) -> None:
        with contextlib.suppress(StoreUnavailableError):  # later: answers come from the rows meanwhile
            await self.roll()

    async def roll(self) -> int:
        """Make the sums of all hours that are due; gives how many."""
        loop, done = asyncio.get_running_loop(), 0
        until = int((self._wall() - SETTLED_S) // HOUR_S)
        while hours := await loop.run_in_executor(self._executor, self._rollups.due, until, AT_A_TIME):
            rolled = [await loop.run_in_executor(self._executor, self._rollups.roll, hour) for hour in hours]
            done += sum(rolled)
            if not all(rolled):
                break  # they have new rows each time: let these come first
        if done:
            logger.debug("usage: the sums of %d hours are made", done)
        return done
