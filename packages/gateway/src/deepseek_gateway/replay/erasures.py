"""Drops answers that are kept for retries when their user is erased: each gateway its own, as the audit log tells it.

An erasure may come by another gateway or by the command, so every process looks for new ones in the log, and says there
what it dropped. What Redis has is dropped by whoever comes first; an answer that is still being made is not kept.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor

import orjson

from deepseek_gateway.audit.actor import GATEWAY
from deepseek_gateway.audit.chain import Entry
from deepseek_gateway.audit.retention import DROP, ERASE, MAX_DROPS
from deepseek_gateway.background import forever
from deepseek_gateway.errors import StoreUnavailableError
from deepseek_gateway.replay.book import ReplayBook
from deepseek_gateway.replay.shared import SharedAnswers
from deepseek_gateway.storage.audit import AuditFilter
from deepseek_gateway.storage.store import Store

logger = logging.getLogger(__name__)

LOOK_S = 2.0


class Erasures:
    """Follows the log for one process.

    Args:
        store: the log, and whose key is whose.
        book: this process's answers.
        shared: those in Redis, if it is there.
        executor: where the store may block.
        node: names this process in the log.
        kept_s: how long answers are kept at most.
    """

    def __init__(
        self,
        store: Store,
        book: ReplayBook,
        shared: SharedAnswers | None,
        executor: Executor,
        node: str,
        kept_s: float,
    ) -> None:
        self._store = store
        self._book = book
        self._shared = shared
        self._executor = executor
        self._node = node
        self._kept_s = kept_s
        self._seen = 0
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin at the log's end, or where an erasure stands that no gateway was there for."""
        self._seen = await asyncio.get_running_loop().run_in_executor(self._executor, self._begin)
        looking = forever(lambda: LOOK_S, self._look_if_there, "dropping answers of who was erased")
        self._task = asyncio.create_task(looking)

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Do what new erasures ask for. Those whose answers in Redis could not be dropped are done again."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        until, erasures = await loop.run_in_executor(self._executor, self._new)
        for entry in erasures:
            keys = await loop.run_in_executor(self._executor, self._keys_of, entry.subject)
            dropped = self._book.forget_keys(frozenset(keys))
            for key_id in keys if self._shared is not None else ():
                found = await self._shared.forget(key_id) if self._shared is not None else 0
                if found is None:
                    return
                dropped += found
            await loop.run_in_executor(self._executor, self._tell, entry, dropped)
            self._seen = entry.sequence
        self._seen = until

    async def _look_if_there(self) -> None:
        with contextlib.suppress(StoreUnavailableError):  # the log will still be there
            await self.look()

    def _begin(self) -> int:
        head = self._store.audit.head().sequence
        since = time.time() - self._kept_s
        erasures = self._store.audit.listing(AuditFilter(action=ERASE, since=since), MAX_DROPS)
        drops = self._store.audit.listing(AuditFilter(action=DROP, since=since), MAX_DROPS)
        done = {orjson.loads(entry.after or "{}").get("entry") for entry in drops}
        return min((entry.sequence - 1 for entry in erasures if entry.sequence not in done), default=head)

    def _new(self) -> tuple[int, Sequence[Entry]]:
        until = self._store.audit.head().sequence
        return until, self._store.audit.acts(ERASE, self._seen, until) if until > self._seen else ()

    def _keys_of(self, subject: str) -> list[str]:
        kind, _, name = subject.partition(":")
        return [name] if kind == "key" else self._store.keys.of_user(name)

    def _tell(self, entry: Entry, dropped: int) -> None:
        told = {"entry": entry.sequence, "node": self._node, "answers": dropped}
        with self._store.database.transaction() as transaction:
            self._store.audit.record(transaction, GATEWAY, DROP, entry.subject, after=told)
        logger.info("dropped %d kept answers of %s, which was erased", dropped, entry.subject)
