"""The word filter of a running gateway: it follows the store, and judges requests and answers."""

import asyncio
import logging
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field

from deepseek_gateway.background import forever
from deepseek_gateway.errors import ApiError, GatewayError
from deepseek_gateway.guard.entries import Level, WordListError
from deepseek_gateway.guard.events import REASON
from deepseek_gateway.guard.fields import Json, has_token_ids
from deepseek_gateway.guard.hits import Hit
from deepseek_gateway.guard.policy import (
    MAX_COMPILED,
    NO_LISTS_VERSION,
    Effective,
    LoadedList,
    Policy,
    Scope,
    Snapshot,
    Wish,
)
from deepseek_gateway.guard.reviews import Finding, ReviewQueue, Told, Watched
from deepseek_gateway.guard.screen import Screening, screen_request
from deepseek_gateway.guard.stage import WordStage
from deepseek_gateway.metrics import GatewayMetrics
from deepseek_gateway.storage.words import WordTables, digest_of

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between looks at the store's stamp. A request never waits for one."""
INLINE_BYTES = 64 * 1024
"""Larger requests are filtered in a thread, so that the event loop goes on."""

RETRY_S = 10.0
"""Seconds between tries to load lists that are broken."""

SWEEP_S = 3600.0
"""Seconds between looks for reviews whose days are over."""

NO_LISTS = Snapshot({}, {}, frozenset(), 0.0)


@dataclass(frozen=True, slots=True)
class WordGuard:
    """What one request is filtered by: a policy, and where its hits go."""

    policy: Policy
    watched: Watched
    queue: ReviewQueue
    metrics: GatewayMetrics
    told: Told
    executor: Executor

    async def screen(self, fields: Json, size: int) -> None:
        """Filter a request's texts, masking them where they stand. `size` is the body's, in bytes.

        Raises:
            ApiError: 400, it has blocked words, or text that cannot be read; 503, the filter cannot do its work.
        """
        policy = self.policy
        if policy.missing:
            message = "the word lists of this key cannot be loaded, so nothing may pass: try again later"
            raise ApiError(503, message, code="content_filter_unavailable", headers={"retry-after": "5"})
        if policy.inward is None:
            return
        if policy.inward.can_block and not policy.fails_open and has_token_ids(fields):
            message = "prompts as token ids cannot be read by the word filter of this key: send text"
            raise ApiError(400, message, code=REASON, kind=REASON)
        try:
            if size <= INLINE_BYTES:
                found = screen_request(policy.inward, fields)
            else:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self.executor, screen_request, policy.inward, fields)
        except Exception as error:
            logger.exception("the word filter failed on request %s", self.watched.request_id)
            if policy.fails_open:
                return
            message = "the word filter failed, so nothing may pass: the log has the request's id"
            raise ApiError(503, message, code="content_filter_unavailable", headers={"retry-after": "5"}) from error
        self._judge(found)

    def stage(self) -> WordStage | None:
        """What the answer passes; None if no rule is for answers."""
        if self.policy.outward is None:
            return None
        return WordStage(self.policy.outward, self._on_answer_hit, fails_open=self.policy.fails_open)

    def _judge(self, found: Screening) -> None:
        for hit, where in found.hits:
            self._note(hit, "in", 0, where)
        if found.blocked_field is not None:
            message = "the request has words that are not allowed here; change it and try again"
            raise ApiError(400, message, param=found.blocked_field.partition(".")[0], code=REASON, kind=REASON)

    def _on_answer_hit(self, hit: Hit, choice: int, where: str) -> None:
        self._note(hit, "out", choice, where)

    def _note(self, hit: Hit, direction: str, choice: int, where: str) -> None:
        level = hit.rule.level
        self.metrics.word_hit(level.value, direction)
        self.told("words", f"{level.value} {direction} {hit.rule.id} {where} {hit.start}-{hit.end}")
        if level is Level.REVIEW:
            self.queue.add(self.watched, Finding.of(hit), direction, choice, where)


@dataclass(frozen=True, slots=True)
class _InForce:
    """A snapshot with what was compiled of it: swapped in one step."""

    snapshot: Snapshot
    compiled: dict[Effective, Policy] = field(default_factory=dict[Effective, Policy])

    def remember(self, effective: Effective, policy: Policy) -> None:
        if len(self.compiled) >= MAX_COMPILED:
            self.compiled.pop(next(iter(self.compiled)), None)
        self.compiled[effective] = policy


class WordFilter:
    """Keeps the lists up to date. A list that breaks keeps the version in memory, and `failure` says so.

    Args:
        tables: where lists are kept.
        pepper: makes the HMACs of hits.
        executor: where the store may block and lists are compiled.
        metrics: told of hits and of broken lists.
        review_days: how long reviews are kept.
    """

    def __init__(
        self, tables: WordTables, pepper: bytes, executor: Executor, metrics: GatewayMetrics, review_days: int
    ) -> None:
        self._tables = tables
        self._executor = executor
        self._metrics = metrics
        self._stamp = -1
        self._in_force = _InForce(NO_LISTS)
        self._next_change: float | None = None
        self._next_try = 0.0
        self._review_s = review_days * 86400.0
        self._next_sweep = 0.0
        self._poller: asyncio.Task[None] | None = None
        self.queue = ReviewQueue(tables, pepper)
        self.failure: str | None = None
        """What is wrong with the lists: shown in /ready."""

    @property
    def list_version(self) -> str:
        """Names the lists in force for everybody; empty without any."""
        in_force = self._in_force
        policy = in_force.compiled.get(in_force.snapshot.effective("", None, None))
        return "" if policy is None else policy.version

    async def start(self) -> None:
        """Load the lists, then follow the store for as long as the loop runs."""
        await self._follow()
        self._poller = asyncio.create_task(forever(lambda: POLL_S, self._poll, "following the word lists"))

    async def close(self) -> None:
        """Stop following, and write the reviews that wait."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._flush)

    async def refresh(self) -> None:
        """Look at the store now."""
        await self._follow()

    async def guard_of(self, watched: Watched, org_id: str | None, told: Told) -> WordGuard | None:
        """The filter of a request; None when no list is for it.

        Raises:
            ApiError: 503, its lists cannot be used.
        """
        in_force = self._in_force
        snapshot = in_force.snapshot
        effective = snapshot.effective(watched.key_id, org_id, watched.model)
        if not effective:
            return None
        policy = in_force.compiled.get(effective)
        if policy is None:
            loop = asyncio.get_running_loop()
            try:
                policy = await loop.run_in_executor(self._executor, snapshot.compile, effective)
            except WordListError as error:
                logger.exception("the word lists cannot be compiled")
                message = "the word lists of this key cannot be used, so nothing may pass: try again later"
                raise ApiError(503, message, code="content_filter_unavailable") from error
            in_force.remember(effective, policy)
        return WordGuard(policy, watched, self.queue, self._metrics, told, self._executor)

    async def version_of(self, watched: Watched, org_id: str | None) -> str:
        """The version of what a request would be filtered by now.

        Raises:
            ApiError: 503, its lists cannot be used.
        """
        guard = await self.guard_of(watched, org_id, _tell_nobody)
        return NO_LISTS_VERSION if guard is None else guard.policy.version

    async def _follow(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._load)

    async def _poll(self) -> None:
        await self._follow()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._flush)

    def _load(self) -> None:
        """Read and compile what changed; every failure leaves what is in force."""
        try:
            now = time.time()
            stamp = self._tables.stamp()
            is_due = self._next_change is not None and now >= self._next_change
            is_new = stamp != self._stamp or is_due
            if not is_new and (self.failure is None or now < self._next_try):
                return
            self._next_try = now + RETRY_S
            self._swap(*self._read(now))
            self._stamp = stamp
        except Exception as error:  # whatever it is: the lists in force must stay
            self._alarm(f"word lists cannot be read, the last ones stay in force: {error}")
        self._metrics.word_lists_broken(self.failure is not None)

    def _read(self, now: float) -> tuple[Snapshot, list[str]]:
        lists: dict[str, LoadedList] = {}
        broken: set[str] = set()
        faults: list[str] = []
        for row in self._tables.lists():
            if row.active_version is None:
                continue
            old = self._in_force.snapshot.lists.get(row.name)
            try:
                lists[row.name] = self._list(row.name, row.active_version, old)
            except (GatewayError, ValueError) as error:
                faults.append(f"{row.name}@{row.active_version}: {error}")
                if old is None:
                    broken.add(row.name)
                else:
                    lists[row.name] = old
        wishes: dict[Scope, dict[str, Wish]] = {}
        for policy in self._tables.policies():
            wishes.setdefault((policy.scope, policy.scope_id), {})[policy.list] = (policy.level, policy.on_failure)
        return Snapshot(lists, wishes, frozenset(broken), now), faults

    def _list(self, name: str, version: int, old: LoadedList | None) -> LoadedList:
        """A version of a list, read unless it is in memory.

        Raises:
            WordListError: it is not what was written, or an entry cannot be used.
        """
        if old is not None and old.version == version:
            return old
        entries = self._tables.entries(name, version)
        known = {row.version: row.sha256 for row in self._tables.versions(name)}
        if known.get(version) != digest_of(entries):
            raise WordListError("its entries are not those that were imported: import and activate it again")
        for entry in entries:
            entry.check()
        return LoadedList(name, version, tuple(entries))

    def _swap(self, snapshot: Snapshot, faults: list[str]) -> None:
        everybody = snapshot.effective("", None, None)
        base = snapshot.compile(everybody) if everybody else None
        self._next_change = snapshot.next_change()
        self._in_force = _InForce(snapshot, {} if base is None else {everybody: base})
        if faults:
            self._alarm(f"word lists are broken, older ones stay in force: {'; '.join(faults)}")
        elif self.failure is not None:
            logger.warning("the word lists are whole again")
            self.failure = None

    def _alarm(self, failure: str) -> None:
        if failure != self.failure:
            logger.error("%s", failure)
        self.failure = failure

    def _flush(self) -> None:
        try:
            self.queue.flush()
            if (now := time.time()) >= self._next_sweep:
                self._next_sweep = now + SWEEP_S
                self._tables.drop_reviews(now - self._review_s)
        except GatewayError as error:
            logger.warning("hits cannot be written into the review queue, they wait: %s", error)
        self._metrics.word_reviews_dropped(self.queue.num_dropped)


def _tell_nobody(_: str, __: str) -> None:
    """Of a filter that is only looked at."""
