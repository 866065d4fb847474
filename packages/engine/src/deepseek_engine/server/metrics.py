"""What this process measures of requests, named once; `core_metrics` has what the core says of itself.

All names begin with `deepseek_engine_`, but for the usual `process_` ones, which are of this process.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from deepseek_engine.core_watch import CoreVitals
from deepseek_engine.messages import EngineStats
from deepseek_engine.server.core_metrics import CoreCollector

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

MAX_ADAPTER_LABELS: Final = 100
"""Each label value is a series that Prometheus keeps for ever, and each user may have an adapter."""

_QUEUE_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TTFT_BUCKETS: Final = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PER_TOKEN_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_E2E_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)


class Metrics:
    """One server's metrics, in a registry of their own, so that several servers can live in a process.

    Args:
        stats: gives the engine's state at the time of a scrape.
        vitals: gives how the core process is doing then.
        weight_bytes: of the model, by type.
        kernels: which serve which part of a step.
    """

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        vitals: Callable[[], CoreVitals],
        weight_bytes: Mapping[str, int],
        kernels: Mapping[str, str],
    ) -> None:
        self._registry = CollectorRegistry()
        prefix = "deepseek_engine_"
        self.requests = Counter(
            f"{prefix}requests", "Requests by endpoint and how they ended", ("route", "status", "finish"),
            registry=self._registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            f"{prefix}prompt_tokens", "Prompt tokens processed, as reported in usage", registry=self._registry
        )
        self.generation_tokens = Counter(
            f"{prefix}generation_tokens", "Tokens generated, as reported in usage", registry=self._registry
        )
        self.queue_time = Histogram(
            f"{prefix}queue_seconds", "From a request's arrival in the core to its first place in a batch, or its end",
            buckets=_QUEUE_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self.ttft = Histogram(
            f"{prefix}time_to_first_token_seconds", "From the request's arrival to its first token",
            buckets=_TTFT_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self.time_per_token = Histogram(
            f"{prefix}time_per_output_token_seconds", "Mean time between the tokens of one request after its first",
            buckets=_PER_TOKEN_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self.e2e = Histogram(
            f"{prefix}request_seconds", "From the request's arrival to its end",
            buckets=_E2E_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._adapter_requests = Counter(
            f"{prefix}adapter_requests", "Requests by LoRA adapter; those of rare ones are counted as other",
            ("adapter",), registry=self._registry,
        )  # fmt: skip
        weights = Gauge(f"{prefix}weight_bytes", "The model's weights", ("dtype",), registry=self._registry)
        for dtype, num_bytes in weight_bytes.items():
            weights.labels(dtype).set(num_bytes)
        serving = Gauge(
            f"{prefix}kernels", "1 for the kernels that serve a part of each step", ("part", "kernels"),
            registry=self._registry,
        )  # fmt: skip
        for part, name in kernels.items():
            serving.labels(part, name).set(1)
        self._counted_adapters: set[str] = set()
        self._registry.register(CoreCollector(stats, vitals))
        ProcessCollector(registry=self._registry)

    def count_adapter(self, name: str) -> None:
        """A request with an adapter has ended. Only the first so many names become label values."""
        if name not in self._counted_adapters and len(self._counted_adapters) >= MAX_ADAPTER_LABELS:
            name = "other"
        else:
            self._counted_adapters.add(name)
        self._adapter_requests.labels(name).inc()

    def watch_request_log(self, num_lost: Callable[[], int]) -> None:
        """Show how many lines of the request log are lost."""
        self._registry.register(_RequestLogCollector(num_lost))

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)


class _RequestLogCollector(Collector):
    """What the request log says of itself when asked."""

    def __init__(self, num_lost: Callable[[], int]) -> None:
        self._num_lost = num_lost

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "deepseek_engine_request_log_lost_lines", "Lines that could not be written", value=self._num_lost()
        )
