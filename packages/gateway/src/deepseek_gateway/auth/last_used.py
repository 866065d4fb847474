"""When keys were last used, written at most once a minute for each key, and never while a request waits."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor

from deepseek_gateway.background import forever
from deepseek_gateway.errors import StoreUnavailableError
from deepseek_gateway.storage.keys import KeyTable

logger = logging.getLogger(__name__)

EVERY_S = 60.0
"""All keys that were seen are written together, this often: so no key is written more often."""


class LastUsed:
    """Gathers what `seen` is told, and brings it into the store now and then.

    Args:
        keys: where it goes.
        executor: where the store may block.
        wall: clock of what is kept.
    """

    def __init__(self, keys: KeyTable, executor: Executor, wall: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._executor = executor
        self._wall = wall
        self._seen: dict[str, float] = {}

    def seen(self, public_id: str) -> None:
        """A key that is in force was used now. Only such keys are told, so their number bounds what is held."""
        self._seen[public_id] = self._wall()

    async def run(self) -> None:
        """Write every minute, until cancelled."""
        await forever(lambda: EVERY_S, self.flush, "writing when keys were last used")

    async def flush(self) -> None:
        """Write what was gathered; what the store does not take now waits for the next time."""
        batch, self._seen = self._seen, {}
        if not batch:
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._executor, self._keys.mark_used, batch)
        except BaseException as error:
            self._seen = {**batch, **self._seen}
            if not isinstance(error, StoreUnavailableError):
                raise
            logger.warning("when %d keys were last used is not written yet: %s", len(batch), error)
