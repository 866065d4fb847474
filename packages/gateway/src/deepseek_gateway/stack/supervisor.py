"""Keeps an engine running: starts it again when it dies, later each time."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable

from deepseek_gateway.stack.engine import EngineError, EngineProcess

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
STABLE_S = 60.0
"""An engine that ran so long starts at the first delay again."""


class EngineSupervisor:
    """One engine, for as long as the gateway runs.

    Args:
        make: a fresh engine process.
        start_timeout_s: seconds that it has to get ready.
    """

    def __init__(self, make: Callable[[], EngineProcess], start_timeout_s: float) -> None:
        self._make = make
        self._start_timeout_s = start_timeout_s
        self._engine: EngineProcess | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def start(self, progress: Callable[[float], None]) -> None:
        """Start the engine and wait until it is ready; then keep it running.

        Raises:
            EngineError: it does not get ready.
        """
        await self._launch(progress)
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the engine, and do not start it again."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._engine is not None:
            await self._engine.stop()

    def kill(self) -> None:
        """End the engine now: `stop` then returns at once."""
        if self._engine is not None:
            self._engine.signal(signal.SIGTERM)

    async def _launch(self, progress: Callable[[float], None]) -> None:
        self._engine = self._make()
        await self._engine.start()
        await self._engine.until_ready(self._start_timeout_s, progress)

    async def _keep(self) -> None:
        delay_s, began_s = FIRST_DELAY_S, time.monotonic()
        while True:
            assert self._engine is not None
            status = await self._engine.wait()
            if time.monotonic() - began_s >= STABLE_S:
                delay_s = FIRST_DELAY_S
            logger.error(
                "the engine ended with status %d; it starts again in %g s\n%s", status, delay_s, self._engine.tail()
            )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_DELAY_S)
            began_s = time.monotonic()
            try:
                await self._launch(lambda _: None)
                logger.info("the engine is ready again")
            except (EngineError, OSError) as error:  # of the system, when there is no memory, or no room for a log
                logger.error("%s", error)  # noqa: TRY400  the message says it all
                await self._engine.stop()
