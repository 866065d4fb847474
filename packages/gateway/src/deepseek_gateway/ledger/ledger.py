"""The ledger of one gateway: admit, observe, settle; then rows flow into the store."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from deepseek_gateway.audit.life import Refusal
from deepseek_gateway.audit.trail import NO_TRAIL, Trail
from deepseek_gateway.errors import JournalError
from deepseek_gateway.ledger.journal import Journal
from deepseek_gateway.ledger.orphans import orphaned_journals
from deepseek_gateway.ledger.records import Admission, LedgerRow, Settled, TokenCounts
from deepseek_gateway.ledger.recovery import (
    CRASHED,
    Observation,
    PriceRow,
    admit_record,
    observe_record,
    recovered,
    settle_record,
)
from deepseek_gateway.limits.rules import Scope
from deepseek_gateway.storage.books import Books

logger = logging.getLogger(__name__)

OBSERVE_EVERY_S = 1.0
"""Seconds between two observations of a stream: what a crash can make its bill too small by."""

SEGMENT_BYTES = 8 * 1024 * 1024
MAX_PENDING_ROWS = 100_000
"""Rows that wait for a store that is down; then nothing is admitted."""

MAX_REFUSALS = 100
"""Refused requests that are kept between two flushes: a flood of them must not become the store's load."""

FLUSH_DELAY_S = 0.2
"""Seconds in which rows gather: a commit touches a page of each index, for one row as for many."""

MAX_RETRY_DELAY_S = 5.0


@dataclass(slots=True)
class _Open:
    admission: Admission
    seen: Observation | None = None


class Ledger:
    """Journals what happens to each request and brings its row into the store.

    Args:
        journal: this process's journal.
        books: where rows end, in the store.
        executor: where the store may block.
        wall: Unix time.
        price: puts the cost on a row that is recovered.
    """

    def __init__(
        self,
        journal: Journal,
        books: Books,
        executor: Executor,
        wall: Callable[[], float] = time.time,
        price: PriceRow = lambda row: row,
    ) -> None:
        self._journal = journal
        self._books = books
        self._executor = executor
        self._wall = wall
        self._price = price
        self._flushing = asyncio.Lock()
        self._open: dict[str, _Open] = {}
        self._pending: list[Settled] = []
        self._refusals: list[Refusal] = []
        self._flying: list[Settled] = []
        self._wake = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self._is_closing = False
        self.is_store_away = False

    @property
    def is_journal_broken(self) -> bool:
        """Whether the last record could not be written."""
        return self._journal.failure is not None

    def probe(self) -> None:
        """See whether a journal that could not be written can be again."""
        self._journal.probe()

    @property
    def pending_rows(self) -> int:
        """Rows that the store does not have yet."""
        return len(self._pending) + len(self._flying)

    @property
    def failure(self) -> str | None:
        """Why nothing can be admitted, or None."""
        if self._journal.failure is not None:
            return f"the journal cannot be written: {self._journal.failure}"
        return "the store takes no rows" if len(self._pending) >= MAX_PENDING_ROWS else None

    async def start(self) -> list[LedgerRow]:
        """Settle what an earlier process left behind, then begin; gives what was settled."""
        found = await self._recover(self._journal)
        self._journal.drop_before(self._journal.start_segment())
        self._flusher = asyncio.create_task(self._flush_forever())
        return [settled.row for settled in found]

    async def adopt(self, state_dir: Path, workers: int) -> list[LedgerRow]:
        """Settle what workers left behind that are no more; gives what was settled."""
        rows: list[LedgerRow] = []
        for journal in orphaned_journals(state_dir, workers):
            rows += [settled.row for settled in await self._recover(journal)]
            journal.drop_before(journal.start_segment())
            await journal.close()
        return rows

    async def _recover(self, journal: Journal) -> list[Settled]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._executor, lambda: recovered(journal.read(), self._price))
        if found:
            await loop.run_in_executor(self._executor, self._books.keep, found)
            orphans = sum(settled.row.end_reason == CRASHED for settled in found)
            logger.warning("recovered %d requests from the journal, %d of them unsettled", len(found), orphans)
        return found

    def admit(self, admission: Admission, *, is_awaited: bool = True) -> int:
        """Journal a request before its first byte leaves; gives the ticket for `durable`, which `is_awaited` or not.

        Raises:
            JournalError: it cannot be journaled, so it must not run.
        """
        if len(self._pending) >= MAX_PENDING_ROWS:
            raise JournalError("the store takes no rows")
        ticket = self._journal.append(admit_record(admission))
        if is_awaited:
            self._journal.disk.begin()
        else:
            self._journal.disk.soon()
        self._open[admission.request_id] = _Open(admission)
        return ticket

    async def durable(self, ticket: int) -> None:
        """Wait until a journaled admission is on the disk."""
        await self._journal.disk.durable(ticket)

    def observe(self, request_id: str, attempt: int, tokens: TokenCounts) -> bool:
        """Note the tokens of a running request: at once the first time, then once a second; False if too early."""
        entry, now = self._open[request_id], self._wall()
        if entry.seen is not None and 0 <= now - entry.seen.at < OBSERVE_EVERY_S:  # below 0: the clock was set back
            return False
        entry.seen = Observation(attempt, tokens, now)
        with contextlib.suppress(JournalError):  # an observation only makes a crash cheaper
            self._journal.append(observe_record(request_id, entry.seen))
        return True

    def settle(self, row: LedgerRow, trail: Trail = NO_TRAIL) -> None:
        """End a request. The row is in the kernel's hands when this returns, and in the store soon after."""
        settled = Settled(row, trail)
        try:
            self._journal.append(settle_record(settled))
        except JournalError:
            logger.exception("request %s is settled in memory only", row.request_id)
        self._open.pop(row.request_id, None)
        self._pending.append(settled)
        self._wake.set()

    def note(self, refusal: Refusal) -> None:
        """Keep a request that was refused. Nothing is owed for it, so a crash or a flood may lose it."""
        if len(self._refusals) < MAX_REFUSALS:
            self._refusals.append(refusal)
            self._wake.set()

    async def flush(self) -> None:
        """Bring all rows settled so far into the store; on failure they wait on, and the error is raised."""
        async with self._flushing:
            await self._flush()

    async def flush_of(self, scope: Scope) -> None:
        """Bring all rows of a scope settled so far into the store; mostly there are none on the way."""
        if any(_is_of(scope, settled.row) for settled in (*self._flying, *self._pending)):
            await self.flush()

    async def _flush(self) -> None:
        settled, self._pending = self._pending, []
        refusals, self._refusals = self._refusals, []
        self._flying = settled
        oldest = self._new_segment() if self._journal.size > SEGMENT_BYTES else None
        loop = asyncio.get_running_loop()
        try:
            if settled or refusals:
                await loop.run_in_executor(self._executor, self._books.keep, settled, refusals)
        except BaseException:
            self._pending[:0] = settled
            raise
        finally:
            self._flying = []
        if oldest is not None:
            with contextlib.suppress(JournalError):  # the next segment that can be begun drops them
                await self._journal.sync()  # what was carried over must be on the disk before the old files go
                self._journal.drop_before(oldest)

    def _new_segment(self) -> int | None:
        """Begin a segment with what runs; None while the disk is full: the old ones are kept then."""
        try:
            return self._journal.start_segment(self._carried())
        except JournalError as error:
            logger.warning("the journal's old files are kept for now: %s", error)
            return None

    async def close(self) -> None:
        """Flush, then forget the journal when everything is in the store."""
        self._is_closing = True
        self._wake.set()
        if self._flusher is not None:
            await self._flusher
        with contextlib.suppress(Exception):  # the journal keeps what the store does not take
            await self.flush()
        if not self._pending and not self._open and (oldest := self._new_segment()) is not None:
            self._journal.drop_before(oldest)
        await self._journal.close()

    def _carried(self) -> list[dict[str, object]]:
        carried: list[dict[str, object]] = []
        for request_id, entry in self._open.items():
            carried.append(admit_record(entry.admission))
            if entry.seen is not None:
                carried.append(observe_record(request_id, entry.seen))
        return carried

    async def _flush_forever(self) -> None:
        delay = FLUSH_DELAY_S
        while not self._is_closing:
            await self._wake.wait()
            if not self._is_closing:
                await asyncio.sleep(delay)  # rows gather, so that one commit takes many
            self._wake.clear()
            try:
                await self.flush()
                delay = FLUSH_DELAY_S
                self.is_store_away = False
            except Exception:
                self.is_store_away = True
                logger.exception("the store took no rows; %d wait", len(self._pending))
                delay = min(delay * 2, MAX_RETRY_DELAY_S)
                if not self._is_closing:
                    self._wake.set()


def _is_of(scope: Scope, row: LedgerRow) -> bool:
    if scope.key_id is not None and row.key_id != scope.key_id:
        return False
    if scope.model is not None and not (
        (row.model or "").startswith(scope.model[:-1]) if scope.model.endswith("*") else row.model == scope.model
    ):
        return False
    owners = ((scope.org_id, row.org_id), (scope.team_id, row.team_id), (scope.user_id, row.user_id))
    return all(named is None or named == given for named, given in owners)
