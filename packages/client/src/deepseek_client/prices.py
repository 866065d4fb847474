"""What requests cost, exactly: a dated table of prices, and Decimals out of it. Unknown is None, never a guess."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal

from deepseek_client.types.responses import ResponseUsage
from deepseek_client.types.usage import Usage

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
