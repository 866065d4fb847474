"""Several gateways on one PostgreSQL must share their limits, or be told that they need not.

A gateway that counts for itself claims the store for itself alone; those that count in Redis claim it together. So a
second one that would count apart is refused, whenever and wherever it starts.
"""

import asyncio
import logging
import time
from concurrent.futures import Executor
from typing import TYPE_CHECKING

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

WAY_OUT = (
    "set GATEWAY_REDIS_URL for all gateways of this store, or accept that each counts for itself with "
    "GATEWAY_ALLOW_LOCAL_LIMITS=true"
)


class SoleCounter:
    """This process's right to count limits as it does. Without PostgreSQL the state directory's lock is enough."""

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self.trouble: str | None = None
        self._executor = executor
        self._wait_s = settings.drain_timeout_s + GRACE_S
        self._shares = settings.redis_url is not None
        self._claim: Claim | None = None
        self._keeper: asyncio.Task[None] | None = None
        _, url = settings.store_address
        if url is not None and not settings.allow_local_limits:
            from deepseek_gateway.storage import claim  # its driver is an extra

            self._claim = claim.Claim(url, LOCK, is_shared=self._shares)

    async def start(self) -> None:
        """Claim the store; wait for a gateway that is just ending.

        Raises:
            ConfigurationError: another one counts limits apart from this one, and does not end.
        """
        if self._claim is None:
            return
        deadline, is_told = time.monotonic() + self._wait_s, False
        while not await self._take(self._claim):
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{self._explanation}: {WAY_OUT}")
            if not is_told:
                logger.warning("%s: waiting up to %g s for it to end", self._explanation, self._wait_s)
                is_told = True
            await asyncio.sleep(RETRY_S)
        self._keeper = asyncio.create_task(self._keep(self._claim))

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

    async def _take(self, claim: "Claim") -> bool:
        return await asyncio.get_running_loop().run_in_executor(self._executor, claim.take)

    async def _keep(self, claim: "Claim") -> None:
        """Claim it again when PostgreSQL was restarted; tell when another one was faster."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                is_held = await self._take(claim)
            except StoreUnavailableError:  # told of elsewhere; nobody else can claim it meanwhile
                continue
            if not is_held and self.trouble is None:
                logger.error("%s: %s", self._explanation, WAY_OUT)
            self.trouble = None if is_held else self._explanation
