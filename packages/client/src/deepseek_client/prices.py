"""What requests cost, exactly: a dated table of prices, and what a client has used. Unknown is None, never a guess."""

import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from deepseek_client.types.base import Usage
from deepseek_client.types.responses import ResponseUsage

_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of a million tokens: of the prompt those in the cache and those not, and of the output."""

    cache_hit: Decimal
    cache_miss: Decimal
    output: Decimal

    def cost(self, usage: Usage) -> Decimal:
        """The price of a request's tokens."""
        hits = cache_hits(usage)
        misses = usage.prompt_tokens - hits
        return (self.cache_hit * hits + self.cache_miss * misses + self.output * usage.completion_tokens) / _MILLION

    def saved(self, usage: Usage) -> Decimal:
        """What the cache has saved of it."""
        return (self.cache_miss - self.cache_hit) * cache_hits(usage) / _MILLION


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """The prices of a model from a moment on, until its next entry; without `peak` they are the same all day."""

    model: str
    since: datetime
    off_peak: Rates
    peak: Rates | None = None


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by model and time. Make your own for a server of your own, and hand it to a client as `prices=`.

    Attributes:
        prices: the entries, in any order.
        currency: of all of them.
        checked_on: when they were last compared with their source.
        peak_hours: from and until, UTC, on Mondays to Fridays that are no holidays.
        holidays: the days on which there is no peak.
        holidays_known_until: the last day that `holidays` speaks of; a peak hour after it has no known price.
    """

    prices: tuple[ModelPrice, ...]
    currency: str = "USD"
    checked_on: date | None = None
    peak_hours: tuple[tuple[time, time], ...] = ()
    holidays: frozenset[date] = field(default=frozenset(), repr=False)
    holidays_known_until: date | None = None

    def rates(self, model: str, at: datetime | float | None = None) -> Rates | None:
        """The prices of a model at a time; None where they are not known.

        Args:
            model: its name, as it was sent.
            at: with a time zone, or seconds since the epoch; now by default.

        Raises:
            ValueError: `at` has no time zone.
        """
        moment = _moment(at)
        known = [entry for entry in self.prices if entry.model == model and entry.since <= moment]
        if not known:
            return None
        entry = max(known, key=lambda entry: entry.since)
        is_peak = self._is_peak(moment)
        if entry.peak is None or is_peak is False:
            return entry.off_peak
        return entry.peak if is_peak else None

    def cost(self, usage: Usage | ResponseUsage, model: str, at: datetime | float | None = None) -> Decimal | None:
        """The price of a request's tokens; None where it is not known. Arguments as for `rates`."""
        rates = self.rates(model, at)
        return None if rates is None else rates.cost(as_usage(usage))

    def _is_peak(self, moment: datetime) -> bool | None:
        """Whether a moment is in a peak hour; None if nobody knows whether it is a holiday."""
        is_hour = any(start <= moment.time() < end for start, end in self.peak_hours)
        if not is_hour or moment.weekday() >= 5 or moment.date() in self.holidays:
            return False
        is_known = self.holidays_known_until is None or moment.date() <= self.holidays_known_until
        return True if is_known else None


def _rates(cache_hit: str, cache_miss: str, output: str) -> Rates:
    return Rates(Decimal(cache_hit), Decimal(cache_miss), Decimal(output))


def _days(month: int, first: int, last: int) -> set[date]:
    return {date(2026, month, day) for day in range(first, last + 1)}


_SINCE = datetime(2026, 9, 11, tzinfo=UTC)
"""The day after the last change: the hour of the change itself is not published."""

DEEPSEEK_PRICES = PriceTable(
    prices=(
        ModelPrice("deepseek-flash", _SINCE, _rates("0.003", "0.15", "0.60"), _rates("0.006", "0.30", "1.20")),
        ModelPrice("deepseek-v4-pro", _SINCE, _rates("0.022", "0.66", "1.98"), _rates("0.044", "1.32", "3.96")),
    ),
    checked_on=date(2026, 11, 15),
    peak_hours=((time(1), time(4)), (time(6), time(10))),
    holidays=frozenset(
        _days(1, 1, 3)
        | _days(2, 15, 23)
        | _days(4, 4, 6)
        | _days(5, 1, 5)
        | _days(6, 19, 21)
        | _days(9, 25, 27)
        | _days(10, 1, 7)
    ),
    holidays_known_until=date(2026, 12, 31),
)
"""DeepSeek's cloud. Source: api-docs.deepseek.com/quick_start/pricing; holidays: China's State Council, 2025-11-04."""


def cost(
    usage: Usage | ResponseUsage,
    model: str,
    at: datetime | float | None = None,
    *,
    prices: PriceTable = DEEPSEEK_PRICES,
) -> Decimal | None:
    """What a request's tokens cost; None where the model, or its price at that time, is not known.

    Args:
        usage: its token counts.
        model: the model's name, as it was sent.
        at: when: with a time zone, or seconds since the epoch; now by default.
        prices: the table; DeepSeek's cloud, in USD, by default.

    Raises:
        ValueError: `at` has no time zone.
    """
    return prices.cost(usage, model, at)


def as_usage(usage: Usage | ResponseUsage) -> Usage:
    """Token counts under the names of most routes."""
    return usage.to_usage() if isinstance(usage, ResponseUsage) else usage


def cache_hits(usage: Usage) -> int:
    """Prompt tokens that were in the cache, under whichever of the two names the server uses."""
    details = usage.prompt_tokens_details
    hits = usage.prompt_cache_hit_tokens or (details.cached_tokens if details is not None else 0)
    return min(hits, usage.prompt_tokens)


def _moment(at: datetime | float | None) -> datetime:
    if at is None:
        return datetime.now(UTC)
    if not isinstance(at, datetime):
        return datetime.fromtimestamp(at, UTC)
    if at.tzinfo is None:
        raise ValueError(f"at={at.isoformat()} has no time zone: say which, as in datetime.now(UTC)")
    return at.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """The tokens of all answers that said how many they took.

    Attributes:
        requests: how many answers.
        prompt_tokens, completion_tokens: all of theirs; the output's include reasoning.
        cache_hit_tokens: of the prompts', those that were in the server's cache.
        reasoning_tokens: of the outputs', those of reasoning.
        cost: the price of the answers whose price is known, in the price table's currency.
        saved: what the cache has saved of it.
        unpriced_requests: answers whose price is not known.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cache_hit_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Decimal = field(default_factory=Decimal)
    saved: Decimal = field(default_factory=Decimal)
    unpriced_requests: int = 0

    @property
    def total_tokens(self) -> int:
        """Of prompts and outputs together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def cache_hit_ratio(self) -> float | None:
        """The part of the prompts that was in the cache; None before the first prompt."""
        return self.cache_hit_tokens / self.prompt_tokens if self.prompt_tokens else None

    def plus(self, usage: Usage, cost: Decimal | None, saved: Decimal | None) -> "UsageTotals":
        """With one more answer."""
        details = usage.completion_tokens_details
        return replace(
            self,
            requests=self.requests + 1,
            prompt_tokens=self.prompt_tokens + usage.prompt_tokens,
            completion_tokens=self.completion_tokens + usage.completion_tokens,
            cache_hit_tokens=self.cache_hit_tokens + cache_hits(usage),
            reasoning_tokens=self.reasoning_tokens + (details.reasoning_tokens if details is not None else 0),
            cost=self.cost + (cost or 0),
            saved=self.saved + (saved or 0),
            unpriced_requests=self.unpriced_requests + (cost is None),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer to be counted.

    Attributes:
        usage: its token counts.
        model: the name that was sent, else the one that the answer names.
        created: when the server says that it began, in seconds since the epoch; None is now.
    """

    usage: Usage
    model: str
    created: float | None


class Ledger:
    """Counts the answers of one client and its `with_options` copies. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = UsageTotals()

    @property
    def totals(self) -> UsageTotals:
        """As of now."""
        return self._totals

    def enter(self, entry: Entry, prices: PriceTable | None) -> Decimal | None:
        """Count an answer; its price, None where it is not known."""
        rates = prices.rates(entry.model, entry.created) if prices is not None else None
        price = rates.cost(entry.usage) if rates is not None else None
        with self._lock:
            self._totals = self._totals.plus(
                entry.usage, price, rates.saved(entry.usage) if rates is not None else None
            )
        return price


def entry_of(answer: object, asked: str | None) -> Entry | None:
    """What is to be counted of an answer; None if it says no token counts."""
    usage: Any = getattr(answer, "usage", None)
    if usage is None:
        return None
    created = getattr(answer, "created", None) or getattr(answer, "created_at", None) or None
    return Entry(as_usage(usage), asked or getattr(answer, "model", ""), created)
