"""Work that comes again and again for as long as the gateway runs, whatever becomes of one turn of it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


async def forever(every_s: Callable[[], float], work: Callable[[], Awaitable[object]], what: str) -> None:
    """Do something until cancelled: a turn that fails is logged, as `what`, and the next one comes all the same.

    A task that ended with an exception would be missed by nobody until the gateway stops.
    """
    while True:
        await asyncio.sleep(every_s())
        try:
            await work()
        except Exception:
            logger.exception("%s failed, and is done again", what)
