"""The rules of the store, copied into memory and never more than two seconds old."""

import asyncio
import logging
from concurrent.futures import Executor

from deepseek_gateway.background import forever
from deepseek_gateway.limits.rulebook import Rulebook
from deepseek_gateway.storage.balances import BalanceTable
from deepseek_gateway.storage.rules import RuleTable

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between looks at the version. A request never waits for one."""


class RuleDirectory:
    """Keeps `book` up to date. While the store is away the last book stays in force.

    Args:
        rules: where rules are kept.
        balances: where prepaid money is kept.
        executor: where the store may block.
    """

    def __init__(self, rules: RuleTable, balances: BalanceTable, executor: Executor) -> None:
        self._rules = rules
        self._balances = balances
        self._executor = executor
        self._version = (-1, -1)
        self._credits: dict[str, int] = {}
        self._poller: asyncio.Task[None] | None = None
        self.book = Rulebook()
        self.is_stale = False

    async def start(self) -> None:
        """Read everything, then look for changes for as long as the loop runs."""
        await self.refresh()
        self._poller = asyncio.create_task(forever(lambda: POLL_S, self._follow, "reading limit rules"))

    async def close(self) -> None:
        """Stop looking."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    async def refresh(self) -> None:
        """Make a new book if the store has changed."""
        book = await asyncio.get_running_loop().run_in_executor(self._executor, self._read)
        self.is_stale = False
        if book is not None:
            self.book = book

    def _read(self) -> Rulebook | None:
        # The version is read first: what changes while we read is read again next time.
        version = self._rules.version()
        if version == self._version:
            return None
        for balance in self._balances.changed_since(self._version[1]):
            self._credits[balance.account] = balance.credit_nano
        book = Rulebook(self._rules.all(), dict(self._credits))
        self._version = version
        return book

    async def _follow(self) -> None:
        try:
            await self.refresh()
        except Exception as error:  # whatever it is, such as a rule of a newer gateway: the last ones stay
            if not self.is_stale:
                logger.warning("limit rules cannot be read, the last ones stay in force: %s", error)
            self.is_stale = True
