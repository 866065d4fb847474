"""What follows from all records: latencies, throughput, goodput, failures by kind.

The terms are those of vLLM's and SGLang's serving benchmarks: TTFT, TPOT, ITL, end-to-end latency.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from deepseek_engine.bench.serving.record import Record

PERCENTILES: Final = (50, 90, 95, 99)
GOALS: Final = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds: mean, percentiles by their number, greatest; and of how many values."""

    count: int
    mean: float
    percentiles: dict[int, float]
    greatest: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole measurement. Latencies, tokens and throughput are those of whole answers; the rest is in `failures`.

    Attributes:
        duration_s: from the first request's due time to the last end.
        num_planned: requests that were to be sent.
        num_sent: requests that came due.
        failures: number of failed requests by kind.
        details: an example of each kind.
        goals_ms: what a request has to stay within to count for goodput.
        good: requests that did; None without goals.
        late_ms: how much later than due requests were sent: the load generator's own fault.
        num_uncounted: whole answers for which the server sent no usage, so that events were counted as tokens.
    """

    duration_s: float
    num_planned: int
    num_sent: int
    num_whole: int
    failures: dict[str, int]
    details: dict[str, str]
    prompt_tokens: int
    output_tokens: int
    latencies: dict[str, Latency]
    goals_ms: dict[str, float]
    good: int | None
    late_ms: Latency
    num_uncounted: int
    mean_concurrency: float

    def rate(self, amount: float) -> float:
        """An amount for each second of the measurement."""
        return amount / self.duration_s if self.duration_s > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything, and the rates that follow."""
        return {
            **asdict(self),
            "requests_per_s": self.rate(self.num_whole),
            "prompt_tokens_per_s": self.rate(self.prompt_tokens),
            "output_tokens_per_s": self.rate(self.output_tokens),
            "goodput_requests_per_s": None if self.good is None else self.rate(self.good),
        }


def summarize(records: Sequence[Record], num_planned: int, goals_ms: Mapping[str, float]) -> Summary:
    """Sum up the records.

    Args:
        records: of all requests that came due.
        num_planned: how many were to come.
        goals_ms: bounds of some of GOALS.
    """
    whole = [record for record in records if record.is_whole]
    failed = [record for record in records if not record.is_whole]
    start_s = min((record.due_s for record in records), default=0.0)
    end_s = max((record.end_s for record in records if record.end_s is not None), default=start_s)
    busy_s = sum(record.end_s - record.due_s for record in records if record.end_s is not None)
    return Summary(
        duration_s=end_s - start_s,
        num_planned=num_planned,
        num_sent=len(records),
        num_whole=len(whole),
        failures=dict(Counter(record.failure or "" for record in failed)),
        details={record.failure or "": record.detail for record in reversed(failed)},
        prompt_tokens=sum(record.prompt_tokens or 0 for record in whole),
        output_tokens=sum(record.output_tokens for record in whole),
        latencies={
            "ttft": latency([record.ttft_ms for record in whole]),
            "tpot": latency([record.tpot_ms for record in whole if record.tpot_ms is not None]),
            "itl": latency([gap for record in whole for gap in record.itl_ms]),
            "e2e": latency([record.e2e_ms for record in whole]),
        },
        goals_ms=dict(goals_ms),
        good=sum(is_good(record, goals_ms) for record in whole) if goals_ms else None,
        late_ms=latency([1000 * (record.sent_s - record.due_s) for record in records if record.sent_s is not None]),
        num_uncounted=sum(not record.is_counted for record in whole),
        mean_concurrency=busy_s / (end_s - start_s) if end_s > start_s else 0.0,
    )


def is_good(record: Record, goals_ms: Mapping[str, float]) -> bool:
    """Whether a whole answer stayed within every goal; one of a single token has no TPOT to miss."""
    values = {"ttft": record.ttft_ms, "tpot": record.tpot_ms or 0.0, "e2e": record.e2e_ms}
    return all(values[name] <= most for name, most in goals_ms.items())


def latency(values: Sequence[float]) -> Latency:
    """Sum values up; all is 0 if there are none."""
    ordered = sorted(values)
    mean = sum(ordered) / len(ordered) if ordered else 0.0
    percentiles = {percent: percentile(ordered, percent) for percent in PERCENTILES}
    return Latency(len(ordered), mean, percentiles, ordered[-1] if ordered else 0.0)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, between neighbours in proportion (numpy's default); 0 of nothing."""
    if not ordered:
        return 0.0
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
