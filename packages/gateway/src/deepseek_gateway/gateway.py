"""Everything that one gateway process holds, started and stopped in order."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Self

from deepseek_gateway.access_log import AccessLog
from deepseek_gateway.admit.house import House
from deepseek_gateway.admit.queue import Priority
from deepseek_gateway.admit.shed import LoopLag
from deepseek_gateway.audit.actor import GATEWAY
from deepseek_gateway.audit.keeper import PayloadKeeper
from deepseek_gateway.audit.life import NODE
from deepseek_gateway.auth.directory import KeyDirectory
from deepseek_gateway.auth.last_used import LastUsed
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.background import forever
from deepseek_gateway.clock import ClockWatch
from deepseek_gateway.config.load import LoadedConfig
from deepseek_gateway.dialects.prompt_tokens import PromptTokens
from deepseek_gateway.edge.tracing import Tracing
from deepseek_gateway.edge.watch import RequestWatch
from deepseek_gateway.errors import ApiError, ConfigurationError, GatewayError, StoreUnavailableError
from deepseek_gateway.guard.classifier import Classifier, ClassifierPlan
from deepseek_gateway.guard.guard import WordFilter
from deepseek_gateway.ledger.journal import Journal
from deepseek_gateway.ledger.ledger import Ledger
from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.alerts import Alerts
from deepseek_gateway.limits.budgets import BudgetReader
from deepseek_gateway.limits.directory import RuleDirectory
from deepseek_gateway.limits.limiter import Limiter
from deepseek_gateway.limits.local import LocalLimiter
from deepseek_gateway.limits.redis_limiter import RedisLimiter
from deepseek_gateway.limits.redis_link import RedisLink
from deepseek_gateway.limits.redis_node import RedisTimes
from deepseek_gateway.limits.rulebook import Plan
from deepseek_gateway.limits.service import LimitService
from deepseek_gateway.limits.sole import SoleCounter
from deepseek_gateway.metrics import GatewayMetrics, HealthFigures, LimitFigures
from deepseek_gateway.money.prices import Price, Prices
from deepseek_gateway.money.service import BalanceService
from deepseek_gateway.people.service import PeopleService
from deepseek_gateway.policy.reload import ConfigReloader, Reading
from deepseek_gateway.policy.snapshot import Snapshot, compile_snapshot
from deepseek_gateway.relay.allowance import SliceSizes
from deepseek_gateway.replay.book import ReplayBook
from deepseek_gateway.replay.erasures import Erasures
from deepseek_gateway.replay.shared import SharedAnswers
from deepseek_gateway.route.breaker import Health
from deepseek_gateway.route.metrics import Figures
from deepseek_gateway.settings import ConfigSource, Settings
from deepseek_gateway.state_dir import open_store, open_vault
from deepseek_gateway.upstream.pool import UpstreamPool
from deepseek_gateway.usage.roller import UsageRoller

logger = logging.getLogger(__name__)

STORE_THREADS = 4
STOP_GRACE_S = 2.0
LAST_WORDS_S = 1.0
"""What a running request has, at a second signal, to end itself; and as much again once it is cancelled."""


class Gateway:
    """One gateway. Make it, `start` it inside the event loop, `close` it.

    Raises:
        ConfigurationError: the store, the pepper or the journal cannot be used; the message says what to do.
    """

    def __init__(self, settings: Settings, source: ConfigSource | None = None) -> None:
        if not settings.upstreams:
            raise ConfigurationError("GATEWAY_UPSTREAMS is empty: name at least one engine, such as http://host:8080")
        self.metrics = GatewayMetrics()
        self.tracing = None if settings.otel_endpoint is None else Tracing.to(settings.otel_endpoint)
        self.access_log = AccessLog(settings.access_log)
        self.store, self.pepper = open_store(settings)
        try:
            self.snapshot = compile_snapshot(settings, self.pepper)
            open_vault(settings)  # a key that cannot be used fails the start
            self._journal = Journal(settings.journal_path)
        except ConfigurationError:
            self.store.close()
            raise
        self.keys = KeyService(self.store, self.pepper)
        self.people = PeopleService(self.store)
        self.executor = ThreadPoolExecutor(STORE_THREADS, "store")
        self.page_executor = ThreadPoolExecutor(3, "pages")  # no page may hold up the look-up of a key
        self.directory = KeyDirectory(self.store, self.pepper, settings.key_cache_ttl_s, self.executor)
        self.last_used = LastUsed(self.store.keys, self.executor)
        self.ledger = Ledger(self._journal, self.store.books, self.executor, price=self._priced)
        self.rules = RuleDirectory(self.store.rules, self.store.balances, self.executor)
        self.words = WordFilter(self.store.words, self.pepper, self.executor, self.metrics, settings.word_review_days)
        self.classifier: Classifier | None = None
        self.payloads = self._payload_keeper(settings)
        self.limits = LimitService(self.store)
        self.balances = BalanceService(self.store, self.prices.currency)
        self.alerts = Alerts(self.store.rules, self.executor, self.metrics.soft_limit_reached)
        self.slices = SliceSizes(settings.slice_tokens, settings.overrun_tokens, settings.default_max_tokens)
        self.limiter = self._limiter(settings)
        self.sole = SoleCounter(settings, self.executor, self._redis_memory)
        self.pool = UpstreamPool(self.snapshot, self.metrics.routing)
        self.prompt_tokens = PromptTokens(self.pool, self.metrics)
        self.loop_lag = LoopLag()
        self.clock = ClockWatch()
        self._reloader: ConfigReloader | None = None
        if source is not None:
            counted = self.metrics.routing.reloaded
            self._reloader = ConfigReloader(source, self.pepper, self._apply, self.executor, counted)
        self.metrics.routing.watch(self.figures)
        self.watches: set[RequestWatch] = set()
        self.on_hangup: list[Callable[[], None]] = []
        """Called on SIGHUP: what reads its files again."""
        self.replays = ReplayBook(
            settings.replay_bytes, settings.replay_entry_bytes, settings.replay_ttl_s, settings.resume_grace_s
        )
        url, self.shared_answers = settings.redis_url, None
        if url is not None:
            self.shared_answers = SharedAnswers(url.get_secret_value(), settings.redis_timeout_s, settings.replay_ttl_s)
        where = self.replays, self.shared_answers, self.executor, f"{NODE}/{settings.worker}"
        self.erasures = Erasures(self.store, *where, settings.replay_ttl_s)
        self._making: set[asyncio.Task[None]] = set()
        self.house = House(lambda: self.settings.max_requests)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def settings(self) -> Settings:
        """The values in force; a request that needs two of the same moment reads `snapshot` once."""
        return self.snapshot.settings

    @property
    def prices(self) -> Prices:
        """The prices in force."""
        return self.snapshot.prices

    @property
    def config_fault(self) -> str | None:
        """What is wrong with the configuration's file since it was changed, if anything is."""
        return None if self._reloader is None else self._reloader.fault

    @property
    def config_loaded(self) -> LoadedConfig[Settings] | None:
        """What was read when the configuration was last sound, with the source of each value."""
        return None if self._reloader is None else self._reloader.sound

    @property
    def config_read(self) -> Reading | None:
        """The last reading of the configuration since the start."""
        return None if self._reloader is None else self._reloader.last

    @property
    def running(self) -> int:
        """Requests for generation that are in the house."""
        return self.house.running

    async def start(self) -> None:
        """Recover the journal, read the rules, meet the engines."""
        settings = self.settings
        try:
            await self.limiter.start()
            await self.sole.start()
        except GatewayError:
            await self.limiter.close()
            await self._journal.close()
            self.store.close()
            raise
        left_behind = await self.ledger.adopt(settings.state_dir, settings.workers) if settings.worker == 0 else []
        self.limiter.settle_recovered([*left_behind, *await self.ledger.start()])
        await self.rules.start()
        await self.words.start()
        if settings.classifier_url:
            self.classifier = Classifier(ClassifierPlan.of(settings), self.words.queue, self.metrics)
        await self._warm()
        await self.payloads.start()
        await self.erasures.start()
        await self.pool.start()
        ticking = forever(lambda: self.settings.keep_alive_s / 8, self._tick, "looking at the clock")
        steady = (ticking, self.loop_lag.run(), self.last_used.run())
        self._tasks = [asyncio.create_task(work) for work in steady]
        if settings.worker == 0:
            self._tasks.append(asyncio.create_task(UsageRoller(self.store.rollups, self.page_executor).run()))
        if self._reloader is not None:
            self.on_hangup.append(lambda: self.pool.spawn(self.reload()))
            self._tasks.append(asyncio.create_task(self._reloader.watch(lambda: self.snapshot)))

    async def _warm(self) -> None:
        """Open what the first requests would else wait for: connections of the store, and of kept answers."""
        loop = asyncio.get_running_loop()
        looks = [loop.run_in_executor(self.executor, self.store.keys.find, "") for _ in range(STORE_THREADS)]
        if self.shared_answers is not None:
            await self.shared_answers.warm()
        await asyncio.gather(*looks)

    async def close(self) -> None:
        """End what still runs, bring the ledger into the store and let everything go."""
        await self._end_requests()
        tasks = [*self._tasks, *self._making]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.replays.close()
        self.access_log.flush()
        for end in self._endings():
            try:
                await end()
            except Exception:  # the others must come to their end all the same, the ledger before all
                logger.exception("a part of the gateway did not end as it should")
        self.executor.shutdown()
        self.page_executor.shutdown()
        self.store.close()

    def _endings(self) -> list[Callable[[], Awaitable[None]]]:
        """How its parts end, in order."""
        shared, tracing, classifier = self.shared_answers, self.tracing, self.classifier
        return [
            *([] if shared is None else [shared.close]),
            self.pool.close,
            *([] if tracing is None else [functools.partial(asyncio.to_thread, tracing.close)]),
            *([] if classifier is None else [classifier.close]),
            *(self.rules.close, self.words.close, self.limiter.close, self.alerts.close, self.last_used.flush),
            *(self.erasures.close, self.payloads.close, self.ledger.close, self.sole.close),
        ]

    async def _end_requests(self) -> None:
        """Nothing runs after a drain; at a second signal, what does settles before the journal is closed."""
        for end in (RequestWatch.stop, RequestWatch.cancel):
            for watch in list(self.watches):
                end(watch)
            if await self.house.is_empty_within(LAST_WORDS_S):
                return

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run something that outlives the request that began it; it ends with the gateway."""
        task = asyncio.create_task(work)
        self._making.add(task)
        task.add_done_callback(self._making.discard)

    def _payload_keeper(self, settings: Settings) -> PayloadKeeper:
        return PayloadKeeper(
            self.store,
            lambda: open_vault(settings),
            self.executor,
            self.metrics.payloads,
            max_bytes=settings.payload_max_bytes,
            queue_bytes=settings.payload_queue_bytes,
            life_days=settings.trace_days,
        )

    @property
    def limits_trouble(self) -> str | None:
        """Why limits are not kept as written just now, or None: traffic may come all the same."""
        if (trouble := self.limiter.trouble or self.sole.trouble or self.sole.apart) is not None:
            return trouble
        return "the store is away: the last rules stay in force" if self.rules.is_stale else None

    @property
    def limit_figures(self) -> LimitFigures:
        """How limits are kept, in numbers."""
        is_kept, limiter = self.limits_trouble is None, self.limiter
        if not isinstance(limiter, RedisLimiter):
            return LimitFigures(is_kept)
        return LimitFigures(is_kept, limiter.num_settling, limiter.num_shared, limiter.num_denied)

    def price(self, plan: Plan, model: str | None) -> Price | None:
        """What a model costs now; None where nobody says.

        Raises:
            ApiError: money limits the request, and the model has no price: 404 where no engine lists it, else 403.
        """
        price = self.prices.find(model, time.time())
        if price is None and plan.tightest_nano is not None:
            known = self.pool.known_models()
            if model is not None and known and model not in known:
                message = f"no engine lists {model!r}; there are: {', '.join(known[:20])}"
                raise ApiError(404, message, param="model", code="model_not_found")
            message = (
                f"the model {model!r} has no price, and a limit in money cannot be kept without: the file of "
                "GATEWAY_PRICES needs a [[price]] for this name"
            )
            raise ApiError(403, message, param="model", code="model_not_priced")
        return price

    def not_ready(self) -> str | None:
        """Why no traffic should come, or None."""
        if self.house.is_closing:
            return "the gateway stops"
        if (failure := self.ledger.failure or self.sole.trouble) is not None:
            return failure
        return None if self.pool.is_up else "no engine is up"

    async def reload(self) -> bool:
        """Read the configuration again; False when it is broken, and the one before stays in force."""
        return self._reloader is not None and await self._reloader.reload(self.snapshot)

    def faults(self) -> list[str]:
        """What is wrong, and does not keep traffic away."""
        classifier = None if self.classifier is None else self.classifier.failure
        found = (self.words.failure, classifier, self.limiter.trouble, self.sole.apart, self.clock.fault)
        faults = [fault for fault in found if fault is not None]
        if self.is_store_away:
            faults.append(f"the store is away: {self.ledger.pending_rows} rows wait, the last rules stay in force")
        engines = self.pool.figures()
        if num_down := sum(engine.state != Health.UP.value for engine in engines):
            faults.append(f"{num_down} of {len(engines)} engines are left alone: they do not answer as they should")
        if self.config_fault is not None:
            faults.append("the configuration's file is broken, and the one before stays in force: see the log")
        return faults

    @property
    def is_store_away(self) -> bool:
        """Whether the store takes no rows, or gives no rules."""
        return self.ledger.is_store_away or self.rules.is_stale

    @property
    def health_figures(self) -> HealthFigures:
        """What it stands on, in numbers."""
        return HealthFigures(self.ledger.is_journal_broken, self.is_store_away, self.clock.num_steps)

    async def drain(self) -> None:
        """Take nothing new, send away what waits, let what runs finish for `drain_timeout_s`, then end it."""
        self.house.is_closing = True
        self.pool.gate.drain()
        if await self.house.is_empty_within(self.settings.drain_timeout_s):
            return
        logger.warning("%d requests run on after %g s: they end now", self.house.running, self.settings.drain_timeout_s)
        for watch in list(self.watches):
            watch.stop()
        await self.house.is_empty_within(self.settings.abort_drain_s + STOP_GRACE_S)

    async def _apply(self, snapshot: Snapshot) -> None:
        """Put a snapshot in force. Requests that run keep what they began with."""
        await self.pool.apply(snapshot)
        if snapshot.settings.log_level != self.settings.log_level:
            logging.getLogger().setLevel(snapshot.settings.log_level.upper())
        before, self.snapshot, settings = self.snapshot.version, snapshot, snapshot.settings
        self.slices = SliceSizes(settings.slice_tokens, settings.overrun_tokens, settings.default_max_tokens)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.executor, self._record_reload, before, snapshot.version)

    def _record_reload(self, before: str, after: str) -> None:
        try:
            with self.store.database.transaction() as transaction:
                told = {"policy_version": after}
                was, now = {"version": before}, {"version": after}
                self.store.audit.record(transaction, GATEWAY, "config.reload", NODE, before=was, after=now, **told)
        except StoreUnavailableError:  # the file is in force here whatever the store does
            logger.exception("the reload to %s is not in the audit log", after)

    def figures(self) -> Figures:
        """Engines, queues and the event loop as they are now."""
        queued = {str(priority): self.pool.gate.length(priority) for priority in Priority}
        is_stale = self.config_fault is not None
        return Figures(self.pool.figures(), queued, self.loop_lag.seconds, self.snapshot.version, is_stale)

    def _limiter(self, settings: Settings) -> Limiter:
        """Where limits are kept: in this process, or where other gateways share them."""
        spent = BudgetReader(self.ledger, self.store, self.executor)
        if settings.redis_url is None:
            return LocalLimiter(spent)
        link = RedisLink(settings.redis_url.get_secret_value(), settings.redis_timeout_s)
        times = RedisTimes(settings.redis_beat_s, settings.redis_lease_s, 3 * settings.redis_beat_s)
        return RedisLimiter(link, spent, self.ledger.flush, times=times, crossed=self.alerts.note)

    def _redis_memory(self) -> str | None:
        return self.limiter.memory if isinstance(self.limiter, RedisLimiter) else None

    def _priced(self, row: LedgerRow) -> LedgerRow:
        """A recovered row with its cost, by the price of its day."""
        price = self.prices.find(row.model, row.created)
        if price is None:
            return row
        return replace(row, cost_nano=price.cost_nano(row.tokens), price_version=price.version)

    async def _tick(self) -> None:
        now_s = time.monotonic()
        for watch in list(self.watches):
            watch.tick(now_s)
        self.replays.expire()
        self.clock.look()
        self.ledger.probe()
