"""What routing and the admission queue count."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from deepseek_gateway.counting import LoopCounter

_PREFIX = "deepseek_gateway_"
_WAIT_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True, slots=True)
class UpstreamFigures:
    """One upstream at the time of a scrape; what it has not said of itself is None."""

    name: str
    state: str
    in_flight: int
    load: float
    waiting: float | None
    kv_use: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that is read when somebody asks. `queued` is by class; `stale` is a broken configuration."""

    upstreams: tuple[UpstreamFigures, ...]
    queued: dict[str, int]
    loop_lag_s: float
    version: str
    is_stale: bool


class RoutingMetrics:
    """Counters of one gateway; `watch` adds the gauges."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._attempts = LoopCounter(
            f"{_PREFIX}upstream_attempts", "Tries at engines, by outcome", ("upstream", "outcome"), registry
        )
        self._opened = self._counter("upstream_ejections", "Times that an engine was left alone", ("upstream", "cause"))
        self._retries = self._counter("retries", "Second tries before the first byte", ("outcome",))
        self._hedges = self._counter("hedges", "Second tries of slow streams, by outcome", ("outcome",))
        self._shed = self._counter("shed_requests", "Requests turned away at the door", ("reason",))
        self._reloads = self._counter("config_reloads", "Readings of the configuration, by result", ("result",))
        self._waits = Histogram(
            f"{_PREFIX}queue_wait_seconds", "Waits for an engine with room, by class and outcome",
            ("priority", "outcome"), buckets=_WAIT_S, registry=registry,
        )  # fmt: skip

    def attempted(self, upstream: str, outcome: str) -> None:
        """One try is over: an outcome of the breaker's, `cancelled` or `lost` to a hedge."""
        self._attempts.add(1, upstream, outcome)

    def ejected(self, upstream: str, cause: str) -> None:
        """An engine was left alone: `gone`, `busy`, `fault`, `sick` or `probe`."""
        self._opened.labels(upstream, cause).inc()

    def retried(self, outcome: str) -> None:
        """A second try: `tried`, or `no_budget`."""
        self._retries.labels(outcome).inc()

    def hedged(self, outcome: str) -> None:
        """A slow stream: `won` or `lost` by the second try, or `no_budget`."""
        self._hedges.labels(outcome).inc()

    def shed(self, reason: str) -> None:
        """A request was turned away: `loop_lag` or `engine_queue`."""
        self._shed.labels(reason).inc()

    def reloaded(self, result: str) -> None:
        """The configuration was read: `applied`, `unchanged` or `failed`."""
        self._reloads.labels(result).inc()

    def waited(self, priority: str, seconds: float, outcome: str) -> None:
        """A wait is over: `placed`, `timeout`, `full`, `left` or `shutdown`."""
        self._waits.labels(priority, outcome).observe(seconds)

    def forget(self, upstream: str) -> None:
        """An upstream is gone for good: its series end."""
        self._attempts.forget(upstream)
        self._opened.remove_by_labels({"upstream": upstream})

    def watch(self, read: Callable[[], Figures]) -> None:
        """Show gauges at each scrape."""
        self._registry.register(_FiguresCollector(read))

    def _counter(self, name: str, text: str, labels: Iterable[str]) -> Counter:
        return Counter(_PREFIX + name, text, tuple(labels), registry=self._registry)


class _FiguresCollector(Collector):
    """Reads the figures of a running gateway."""

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        figures = self._read()
        up = _gauge("upstream_up", "1 when the engine takes traffic", "upstream")
        state = _gauge("upstream_state", "1 for the state that the engine is in", "upstream", "state")
        in_flight = _gauge("upstream_in_flight_requests", "Requests at the engine", "upstream")
        load = _gauge("upstream_load", "Requests at the engine by the best knowledge, for its weight", "upstream")
        waiting = _gauge("upstream_waiting_requests", "Requests that wait there, as it says", "upstream")
        kv_use = _gauge("upstream_kv_cache_use", "Share of its KV cache in use, as it says", "upstream")
        for one in figures.upstreams:
            up.add_metric((one.name,), one.state == "up")
            in_flight.add_metric((one.name,), one.in_flight)
            load.add_metric((one.name,), one.load)
            for name in ("up", "down", "half_open"):
                state.add_metric((one.name, name), one.state == name)
            if one.waiting is not None:
                waiting.add_metric((one.name,), one.waiting)
            if one.kv_use is not None:
                kv_use.add_metric((one.name,), one.kv_use)
        queued = _gauge("queue_length", "Requests that wait for an engine with room", "priority")
        for priority, number in figures.queued.items():
            queued.add_metric((priority,), number)
        lag = GaugeMetricFamily(f"{_PREFIX}loop_lag_seconds", "Lateness of the event loop", value=figures.loop_lag_s)
        config = _gauge("config_info", "1 for the configuration in force", "version")
        config.add_metric((figures.version,), 1)
        stale = GaugeMetricFamily(
            f"{_PREFIX}config_stale", "1 while the configuration's file is broken", value=figures.is_stale
        )
        yield from (up, state, in_flight, load, waiting, kv_use, queued, lag, config, stale)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, labels=labels)
