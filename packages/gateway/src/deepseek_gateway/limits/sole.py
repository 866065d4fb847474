"""Several gateways on one PostgreSQL must count their limits together, or be told that they need not.

A gateway that counts for itself claims the store for itself alone; those that count in Redis claim it together, and
show which memory of Redis they count in (its epoch). So a second one that would count apart is refused, whenever and
wherever it starts: without Redis, in another Redis, or in another database of the same one.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING

from deepseek_gateway.background import forever
from deepseek_gateway.errors import ConfigurationError, StoreUnavailableError
from deepseek_gateway.settings import Settings

if TYPE_CHECKING:
    from deepseek_gateway.storage.claim import Claim

logger = logging.getLogger(__name__)

LOCK = 1
CHECK_S = 2.0
RETRY_S = 0.2
GRACE_S = 15.0
"""Beyond a drain: how long a start waits for the gateway that it follows."""

PATIENCE = 3
"""Looks in a row that must find others in another Redis: after it lost its memory, each notices in its own time."""

WAY_OUT = (
    "set GATEWAY_REDIS_URL for all gateways of this store, or accept that each counts for itself with "
    "GATEWAY_ALLOW_LOCAL_LIMITS=true"
)
APART = (
    "other gateways that use this store count limits in another Redis, or another database of it, so callers could "
    "use each limit more than once"
)
ONE_WAY_OUT = (
    "give all gateways of this store the same GATEWAY_REDIS_URL (to move to another Redis, end all of them first), or "
    "accept that they count apart with GATEWAY_ALLOW_LOCAL_LIMITS=true"
)


class SoleCounter:
    """This process's right to count limits as it does. Without PostgreSQL the state directory's lock is enough.

    Args:
        settings: of this process.
        executor: where the store may block.
        memory: the name of Redis's memory; None while it does not answer, and without Redis.

    Attributes:
        trouble: why this process must not count, if another one was faster to claim the store.
        apart: that others count in another Redis. No one knows who is right, so all serve on and tell.
    """

    def __init__(self, settings: Settings, executor: Executor, memory: Callable[[], str | None] = lambda: None) -> None:
        self.trouble: str | None = None
        self.apart: str | None = None
        self._executor = executor
        self._memory = memory
        self._wait_s = settings.drain_timeout_s + GRACE_S
        self._shares = settings.redis_url is not None
        self._claim: Claim | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._num_apart = 0
        _, url = settings.store_address
        if url is not None and not settings.allow_local_limits:
            from deepseek_gateway.storage import claim  # its driver is an extra

            self._claim = claim.Claim(url, LOCK, is_shared=self._shares)

    async def start(self) -> None:
        """Claim the store; wait for a gateway that is just ending.

        Raises:
            ConfigurationError: another one counts limits apart from this one, and does not end.
        """
        if (claim := self._claim) is None:
            return
        deadline = time.monotonic() + self._wait_s
        await self._wait_for(partial(self._take, claim), deadline, self._explanation, WAY_OUT)
        if self._shares:
            await self._wait_for(partial(self._show, claim, if_alone=True), deadline, APART, ONE_WAY_OUT)
        keep = partial(self._keep, claim)
        self._keeper = asyncio.create_task(forever(lambda: CHECK_S, keep, "claiming the store"))

    async def close(self) -> None:
        """Let others count."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._claim is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._claim.close)

    @property
    def _explanation(self) -> str:
        how = "counts limits without Redis" if self._shares else "counts limits too"
        return f"another gateway that uses this store {how}, so callers could use each limit more than once"

    async def _wait_for(self, is_so: Callable[[], Awaitable[bool]], deadline: float, why: str, way_out: str) -> None:
        is_told = False
        while not await is_so():
            if time.monotonic() > deadline:
                await self.close()
                raise ConfigurationError(f"{why}: {way_out}")
            if not is_told:
                logger.warning("%s: waiting up to %g s for it to end", why, self._wait_s)
                is_told = True
            await asyncio.sleep(RETRY_S)

    async def _take(self, claim: "Claim") -> bool:
        return await asyncio.get_running_loop().run_in_executor(self._executor, claim.take)

    async def _show(self, claim: "Claim", *, if_alone: bool = False) -> bool:
        """Show others which memory of Redis this one counts in; False where some count in another."""
        memory = self._memory()
        mark = partial(claim.mark, memory, if_alone=if_alone and memory is not None)
        is_one = await asyncio.get_running_loop().run_in_executor(self._executor, mark)
        return is_one or memory is None

    async def _keep(self, claim: "Claim") -> None:
        """Claim it again when PostgreSQL was restarted; tell when another one was faster, or counts apart."""
        try:
            is_held = await self._take(claim)
            is_one = not (is_held and self._shares) or await self._show(claim)
        except StoreUnavailableError:  # told of elsewhere; nobody else can claim it meanwhile
            return
        if not is_held and self.trouble is None:
            logger.error("%s: %s", self._explanation, WAY_OUT)
        self.trouble = None if is_held else self._explanation
        self._num_apart = 0 if is_one else self._num_apart + 1
        if self._num_apart == PATIENCE:
            logger.error("%s: %s", APART, ONE_WAY_OUT)
        self.apart = APART if self._num_apart >= PATIENCE else None
