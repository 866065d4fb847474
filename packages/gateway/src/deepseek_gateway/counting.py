"""Counters and histograms of what each request does: numbers in a dict, put into words when somebody asks.

`prometheus_client` takes a lock and half a dozen calls for each number. These are for the event loop alone.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class LoopCounter(Collector):
    """A counter for each set of label values."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._about = name, text, tuple(labels)
        self._values: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def add(self, amount: float, *labels: str) -> None:
        """Count."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def forget(self, first: str) -> None:
        """End all series whose first label has this value."""
        self._values = {labels: value for labels, value in self._values.items() if labels[0] != first}

    def collect(self) -> Iterator[Metric]:
        """All series."""
        name, text, labels = self._about
        family = CounterMetricFamily(name, text, labels=labels)
        for values, value in list(self._values.items()):
            family.add_metric(values, value)
        yield family


class LoopHistogram(Collector):
    """A histogram for each value of one label.

    Args:
        name: of the metric.
        text: what it is.
        label: the name of its label.
        bounds: upper bounds of the buckets; one more takes the rest.
        registry: what shows it.
    """

    def __init__(self, name: str, text: str, label: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._about = name, text, (label,)
        self._bounds = tuple(map(float, bounds))
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def observe(self, value: float, label: str) -> None:
        """Count a value."""
        counts = self._counts.get(label)
        if counts is None:
            counts = self._counts[label] = [0] * (len(self._bounds) + 1)
            self._sums[label] = 0.0
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[label] += value

    def collect(self) -> Iterator[Metric]:
        """All series."""
        name, text, labels = self._about
        family = HistogramMetricFamily(name, text, labels=labels)
        for label, counts in list(self._counts.items()):
            buckets, total = list[tuple[str, float]](), 0
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric((label,), buckets, self._sums[label])
        yield family
