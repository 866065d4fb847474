"""Every counter and histogram, named once. Labels take values from fixed sets, or from the configuration."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from deepseek_gateway.counting import LoopCounter, LoopHistogram
from deepseek_gateway.edge.context import RequestContext
from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.route.metrics import RoutingMetrics

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass(frozen=True, slots=True)
class LimitFigures:
    """How limits are kept: as written or by policy, and what happened because of that."""

    is_kept: bool
    num_settling: int = 0
    num_shared: int = 0
    num_denied: int = 0


@dataclass(frozen=True, slots=True)
class HealthFigures:
    """What this gateway stands on: its journal's disk, its store, its clock."""

    is_journal_broken: bool
    is_store_away: bool
    num_clock_steps: int


class GatewayMetrics:
    """The metrics of one gateway, in a registry of its own: two gateways can live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = LoopCounter(
            "deepseek_gateway_requests", "HTTP requests answered", ("route", "status"), registry
        )
        self._duration_s = LoopHistogram(
            "deepseek_gateway_request_duration_seconds", "From request to end of answer", "route", _SECONDS, registry
        )
        self._ttft_s = LoopHistogram(
            "deepseek_gateway_time_to_first_token_seconds",
            "From request to the first event of a stream",
            "route",
            _SECONDS,
            registry,
        )
        self._tokens = LoopCounter("deepseek_gateway_tokens", "Tokens billed", ("kind",), registry)
        self._settled = LoopCounter(
            "deepseek_gateway_settled_requests", "Ledger rows", ("status", "accuracy"), registry
        )
        self._refused = Counter(
            "deepseek_gateway_limited_requests", "Requests refused by a limit", ["rule"], registry=self._registry
        )
        self._prompts = Counter(
            "deepseek_gateway_prompts_counted",
            "Prompts that an engine's tokenizer was asked to count, as a limit hung on it",
            ["outcome"],
            registry=self._registry,
        )
        self._soft = Counter(
            "deepseek_gateway_soft_limits_reached",
            "Soft limits reached, once a window",
            ["rule"],
            registry=self._registry,
        )
        self._replayed = Counter(
            "deepseek_gateway_replayed_requests",
            "Requests served from another request's answer",
            ["kind"],
            registry=self._registry,
        )
        self._payloads = Counter(
            "deepseek_gateway_payloads",
            "Requests whose texts were to be kept: kept, or lost",
            ["outcome"],
            registry=self._registry,
        )
        self._limits_kept = self._gauge("limits_kept", "1 when limits are kept as written, 0 while their policies hold")
        self._limits_settling = self._gauge("limits_settling", "Settlements that Redis does not know yet")
        self._limits_shared = self._gauge("limits_shared", "Requests let in by this gateway's share since the start")
        self._limits_denied = self._gauge("limits_denied", "Requests refused since the start because Redis was away")
        self._journal_broken = self._gauge("journal_broken", "1 while the journal cannot be written: all is refused")
        self._store_away = self._gauge("store_unreachable", "1 while the store takes no rows, or gives no rules")
        self._clock_steps = self._gauge("clock_steps", "Times that the clock was set since the start")
        self._in_flight = Gauge("deepseek_gateway_in_flight_requests", "Admitted requests", registry=self._registry)
        self._pending = Gauge(
            "deepseek_gateway_ledger_pending_rows", "Rows that wait for the store", registry=self._registry
        )
        self.routing = RoutingMetrics(self._registry)
        self._word_hits = Counter(
            "deepseek_gateway_word_hits", "Hits of word lists", ["level", "direction"], registry=self._registry
        )
        self._classified = Counter(
            "deepseek_gateway_classified_texts",
            "Texts that went to the classifier",
            ["outcome", "direction"],
            registry=self._registry,
        )
        self._limits_alone = Gauge(
            "deepseek_gateway_shared_limits_unreachable",
            "1 while limits are not counted together with other gateways: Redis does not answer",
            registry=self._registry,
        )
        self._words_broken = Gauge(
            "deepseek_gateway_word_lists_broken",
            "1 while word lists cannot be loaded and older ones stay in force",
            registry=self._registry,
        )
        self._reviews_dropped = Gauge(
            "deepseek_gateway_word_reviews_dropped", "Hits that found no room in the queue", registry=self._registry
        )

    def word_hit(self, level: str, direction: str) -> None:
        """Count a hit of a word list."""
        self._word_hits.labels(level, direction).inc()

    def classified(self, outcome: str, direction: str) -> None:
        """Count a text that was to be classified: `passed`, `flagged`, `failed` or `dropped`."""
        self._classified.labels(outcome, direction).inc()

    def word_lists_broken(self, are_broken: bool) -> None:
        """Say whether lists could not be loaded."""
        self._words_broken.set(are_broken)

    def word_reviews_dropped(self, number: int) -> None:
        """Say how many hits found no room on their way into the review queue."""
        self._reviews_dropped.set(number)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"deepseek_gateway_{name}", text, registry=self._registry)

    def answered(self, context: RequestContext) -> None:
        """Count an HTTP request that is over."""
        self._requests.add(1, context.route, str(context.status))
        self._duration_s.observe(context.elapsed_ms() / 1000, context.route)
        if context.ttft_ms is not None:
            self._ttft_s.observe(context.ttft_ms / 1000, context.route)

    def settled(self, row: LedgerRow) -> None:
        """Count a ledger row."""
        self._settled.add(1, row.status, row.accuracy)
        self._tokens.add(row.prompt_tokens, "prompt")
        self._tokens.add(row.cached_tokens, "cached")
        self._tokens.add(row.completion_tokens, "completion")

    def limited(self, rule: str) -> None:
        """Count a refusal."""
        self._refused.labels(rule).inc()

    def prompt_counted(self, outcome: str) -> None:
        """Count a prompt whose tokens an engine was asked for: `counted` or `failed`."""
        self._prompts.labels(outcome).inc()

    def payloads(self, outcome: str, number: int) -> None:
        """Count texts that were kept or lost."""
        self._payloads.labels(outcome).inc(number)

    def soft_limit_reached(self, rule: str) -> None:
        """Count an event of a soft limit."""
        self._soft.labels(rule).inc()

    def replayed(self, kind: str) -> None:
        """Count a request that was served from another one's answer: `running`, `finished` or `resumed`."""
        self._replayed.labels(kind).inc()

    def limits(self, figures: LimitFigures) -> None:
        """Take how limits are kept just now."""
        self._limits_kept.set(figures.is_kept)
        self._limits_settling.set(figures.num_settling)
        self._limits_shared.set(figures.num_shared)
        self._limits_denied.set(figures.num_denied)

    def health(self, figures: HealthFigures) -> None:
        """Take how things are just now."""
        self._journal_broken.set(figures.is_journal_broken)
        self._store_away.set(figures.is_store_away)
        self._clock_steps.set(figures.num_clock_steps)

    def exposition(self, in_flight: int, pending_rows: int, *, limits_alone: bool = False) -> bytes:
        """Prometheus text."""
        self._limits_alone.set(limits_alone)
        self._in_flight.set(in_flight)
        self._pending.set(pending_rows)
        return generate_latest(self._registry)
