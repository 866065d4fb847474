"""What the overview shows of a range of time: totals, and how they changed; lines over time; who used most."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deepseek_gateway.errors import ApiError
from deepseek_gateway.money.amounts import NANO
from deepseek_gateway.storage.statistics import Slot, percentile
from deepseek_gateway.storage.store import Store
from deepseek_gateway.usage.question import Dimension, Order, Question
from deepseek_gateway.web import formats

STATUSES = ("finished", "cancelled", "failed")
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
TOP = {"keys": Dimension.KEY, "models": Dimension.MODEL}
MAX_TOP = 5


@dataclass(frozen=True, slots=True)
class Range:
    """A choice of how far to look back, in slots of one length."""

    name: str
    slot_s: int
    num_slots: int

    def numbers(self, now: float) -> range:
        """Its slots, counted from 1970; `now` is in the last one."""
        last = int(now // self.slot_s)
        return range(last - self.num_slots + 1, last + 1)


@dataclass(frozen=True, slots=True)
class Sums:
    """Slots added up."""

    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nano: int

    @classmethod
    def of(cls, slots: Iterable[Slot]) -> "Sums":
        """All of them together."""
        kept = list(slots)
        names = ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_nano")
        return cls(
            sum(slot.requests for slot in kept),
            sum(slot.requests for slot in kept if slot.status == "failed"),
            *(sum(getattr(slot, name) for slot in kept) for name in names),
        )

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


def figures_of(store: Store, currency: str, choice: Range, now: float) -> dict[str, Any]:
    """Everything; a line has one value a slot, None where nothing happened."""
    numbers = choice.numbers(now)
    since, until = float(numbers[0] * choice.slot_s), float((numbers[-1] + 1) * choice.slot_s)
    slots = store.statistics.slots(since, until, choice.slot_s)
    # As long a time, which ends where this one begins: the last slot is not over yet.
    before = Sums.of(store.statistics.slots(since - (now - since), since, choice.slot_s))
    latency, ttft = (
        _Percentiles(store.statistics.bins(column, since, until, choice.slot_s)) for column in ("latency_ms", "ttft_ms")
    )
    return {
        "times": [number * choice.slot_s for number in numbers],
        "slot_s": choice.slot_s,
        "requests": {status: _line(slots, numbers, status, "requests") for status in STATUSES},
        "tokens": {name: _line(slots, numbers, None, f"{name}_tokens") for name in ("prompt", "cached", "completion")},
        "cost": [nano / NANO for nano in _line(slots, numbers, None, "cost_nano")],
        "currency": currency,
        "latency": latency.lines(numbers),
        "ttft": ttft.lines(numbers),
        "totals": _totals(Sums.of(slots), before, latency, ttft, currency),
        "top": {name: _top(store, dimension, since, until, currency) for name, dimension in TOP.items()},
    }


@dataclass(frozen=True, slots=True)
class _Percentiles:
    bins: dict[int, dict[int, int]]

    def lines(self, numbers: range) -> dict[str, list[float | None]]:
        return {name: [self._of(number, share) for number in numbers] for name, share in SHARES.items()}

    def overall(self) -> dict[str, float | None]:
        together: dict[int, int] = {}
        for bins in self.bins.values():
            for at, count in bins.items():
                together[at] = together.get(at, 0) + count
        return {name: percentile(together, share) for name, share in SHARES.items()}

    def _of(self, number: int, share: float) -> float | None:
        value = percentile(self.bins.get(number, {}), share)
        return None if value is None else round(value, 1)


def _line(slots: Iterable[Slot], numbers: range, status: str | None, name: str) -> list[int]:
    values = dict.fromkeys(numbers, 0)
    for slot in slots:
        if slot.number in values and status in {None, slot.status}:
            values[slot.number] += int(getattr(slot, name))
    return list(values.values())


def _totals(sums: Sums, before: Sums, latency: _Percentiles, ttft: _Percentiles, currency: str) -> dict[str, Any]:
    return {
        "requests": sums.requests,
        "failed": sums.failed,
        "error_rate": sums.failed / sums.requests if sums.requests else None,
        "tokens": sums.tokens,
        "prompt_tokens": sums.prompt_tokens,
        "cached_tokens": sums.cached_tokens,
        "cache_rate": sums.cached_tokens / sums.prompt_tokens if sums.prompt_tokens else None,
        "cost": formats.money(sums.cost_nano, currency),
        "latency": latency.overall(),
        "ttft": ttft.overall(),
        "changes": {
            "requests": formats.change(before.requests, sums.requests),
            "tokens": formats.change(before.tokens, sums.tokens),
            "cost": formats.change(before.cost_nano, sums.cost_nano),
        },
    }


def _top(store: Store, by: Dimension, since: float, until: float, currency: str) -> list[dict[str, Any]]:
    question = Question(by=(by,), since=since, until=until, order=Order.TOKENS, limit=MAX_TOP)
    try:
        lines = store.usage.answer(question)
    except ApiError:  # old rows were deleted, and their hourly sums do not know parts of hours
        return []
    names = store.usage.names_in((by,), lines)
    most = max((line.total_tokens for line in lines), default=0)
    return [
        {
            "id": line.labels[0],
            "name": names.get(line.labels[0]) or line.labels[0] or formats.NONE,
            "share": line.total_tokens / most if most else 0.0,
            "requests": line.requests,
            "tokens": line.total_tokens,
            "cost": formats.money(line.cost_nano, currency),
        }
        for line in lines
    ]
