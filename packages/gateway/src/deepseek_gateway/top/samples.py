"""Prometheus text as numbers, and what two readings of it say about the time between them."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

Labels = dict[str, str]

PREFIX = "deepseek_gateway_"
_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Samples:
    """One reading, and the monotonic seconds at which it was taken."""

    at_s: float
    values: dict[str, list[tuple[Labels, float]]]

    @classmethod
    def parse(cls, text: str, at_s: float) -> "Samples":
        """Read an exposition; names lose the gateway's prefix."""
        values: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for line in text.splitlines():
            match = _LINE.fullmatch(line)
            if match is not None and not line.startswith("#"):
                values[match[1].removeprefix(PREFIX)].append((dict(_LABEL.findall(match[2] or "")), float(match[3])))
        return cls(at_s, dict(values))

    def total(self, name: str, where: Callable[[Labels], bool] = lambda _: True) -> float:
        """The sum over all series of a name, or over some."""
        return sum(value for labels, value in self.values.get(name, ()) if where(labels))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums by the value of a label."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self.values.get(name, ()):
            sums[labels.get(label, "")] += value
        return dict(sums)

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram of all series together: counts up to each bound."""
        return {float(bound): value for bound, value in self.by(f"{name}_bucket", "le").items()}


@dataclass(frozen=True, slots=True)
class Span:
    """Two readings. Without an earlier one, since the gateway began."""

    before: Samples | None
    now: Samples

    @property
    def seconds(self) -> float | None:
        """Between them."""
        return None if self.before is None else max(1e-9, self.now.at_s - self.before.at_s)

    def grown(self, name: str, where: Callable[[Labels], bool] = lambda _: True) -> float:
        """How much a counter grew; one that a restart has reset began at 0."""
        now = self.now.total(name, where)
        before = 0.0 if self.before is None else self.before.total(name, where)
        return now - before if now >= before else now

    def rate(self, name: str, where: Callable[[Labels], bool] = lambda _: True) -> float | None:
        """A counter's growth a second; None without an earlier reading."""
        return None if self.seconds is None else self.grown(name, where) / self.seconds

    def quantile(self, name: str, share: float) -> float | None:
        """A quantile of a histogram's growth, by linear interpolation within a bucket; None when it did not grow."""
        now, before = self.now.buckets(name), {} if self.before is None else self.before.buckets(name)
        if any(now.get(bound, 0.0) < value for bound, value in before.items()):
            before = {}  # a restart
        counts = [(bound, now[bound] - before.get(bound, 0.0)) for bound in sorted(now)]
        if not counts or counts[-1][1] <= 0:
            return None
        wanted, lower, below = counts[-1][1] * share, 0.0, 0.0
        for bound, count in counts:
            if count >= wanted:
                if bound == float("inf"):
                    return lower
                return lower + (bound - lower) * (wanted - below) / max(count - below, 1e-9)
            lower, below = bound, count
        return lower
