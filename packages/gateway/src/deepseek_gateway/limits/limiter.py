"""Reserve before a call, extend while it streams, settle after it.

All rules of a request are asked, then all are charged, in one call without a suspension point: on one event loop that
is one atomic step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from deepseek_gateway.limits.meters import MonthMeter, RequestMeter, TokenMeter, month_of, next_month_start
from deepseek_gateway.limits.rules import LimitReached, Limits, Now, Rule


@dataclass(slots=True)
class KeyMeters:
    """The meters of one key."""

    requests: RequestMeter = field(default_factory=RequestMeter)
    tokens: TokenMeter = field(default_factory=TokenMeter)
    month: MonthMeter = field(default_factory=MonthMeter)
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs to begin: its prompt, and room for the first tokens of the answer."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class Reservation:
    """Tokens held for one running request."""

    key_id: str
    limits: Limits
    month: str
    held: int
    is_settled: bool = False


class LocalLimiter:
    """Limits of all keys in one process."""

    def __init__(self, month_usage: Mapping[str, int] | None = None, wall_s: float = 0.0) -> None:
        self._meters: dict[str, KeyMeters] = {}
        for key_id, used in (month_usage or {}).items():
            self._meters[key_id] = KeyMeters(month=MonthMeter(month_of(wall_s), used))

    def meters(self, key_id: str) -> KeyMeters:
        """A key's meters, made on first use."""
        meters = self._meters.get(key_id)
        if meters is None:
            meters = self._meters[key_id] = KeyMeters()
        return meters

    def admit(self, key_id: str, limits: Limits, ask: Ask, now: Now) -> Reservation:
        """Let a request in and hold its tokens.

        Raises:
            LimitReached: a rule has no room; nothing was charged.
        """
        meters = self.meters(key_id)
        meters.month.roll(month_of(now.wall_s))
        _check_month(meters, limits, ask, now)
        _check_concurrency(meters, limits)
        _check_requests(meters, limits, now)
        _check_tokens(meters, limits, ask, now)
        if limits.requests_per_minute is not None:
            meters.requests.charge(limits.requests_per_minute, now.monotonic_s)
        if limits.tokens_per_minute is not None:
            meters.tokens.charge(ask.tokens, limits.tokens_per_minute, now.monotonic_s)
        meters.month.held += ask.tokens
        meters.in_flight += 1
        return Reservation(key_id, limits, meters.month.month, ask.tokens)

    def extend(self, reservation: Reservation, tokens: int, now: Now) -> int:
        """Hold up to `tokens` more; gives how many it got, 0 when a limit is reached."""
        meters, limits = self.meters(reservation.key_id), reservation.limits
        granted = float(tokens)
        if limits.tokens_per_minute is not None:
            granted = min(granted, meters.tokens.available(limits.tokens_per_minute, now.monotonic_s))
        meters.month.roll(month_of(now.wall_s))
        is_this_month = reservation.month == meters.month.month
        if limits.tokens_per_month is not None and is_this_month:
            granted = min(granted, limits.tokens_per_month - meters.month.taken)
        extra = max(0, math.floor(granted))
        if limits.tokens_per_minute is not None:
            meters.tokens.charge(extra, limits.tokens_per_minute, now.monotonic_s)
        if is_this_month:
            meters.month.held += extra
        reservation.held += extra
        return extra

    def settle(self, reservation: Reservation, used: int, now: Now) -> None:
        """Replace what was held by what was used, and free the request's place. A second call does nothing."""
        if reservation.is_settled:
            return
        reservation.is_settled = True
        meters, limits = self.meters(reservation.key_id), reservation.limits
        meters.in_flight -= 1
        if limits.tokens_per_minute is not None:
            meters.tokens.charge(used - reservation.held, limits.tokens_per_minute, now.monotonic_s)
        meters.month.roll(month_of(now.wall_s))
        if reservation.month == meters.month.month:
            meters.month.held -= reservation.held
            meters.month.used += used

    def reached(self, reservation: Reservation, now: Now) -> LimitReached:
        """The refusal for a running request that cannot extend."""
        month = self.meters(reservation.key_id).month
        limit = reservation.limits.tokens_per_month
        if limit is not None and reservation.month == month.month and month.taken >= limit:
            return month_reached(limit, month.taken, now)
        rate = reservation.limits.tokens_per_minute
        return LimitReached(Rule.TOKENS_PER_MINUTE, f"tokens_per_minute={rate} is used up: the answer ends here", 1.0)


def month_reached(limit: int, taken: int, now: Now) -> LimitReached:
    """The refusal of the month's budget, with the day it begins again."""
    resets = datetime.fromtimestamp(next_month_start(now.wall_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    message = f"tokens_per_month={limit} is used up ({taken} used or held by running requests): it resets at {resets}"
    return LimitReached(Rule.TOKENS_PER_MONTH, message, None)


def _check_month(meters: KeyMeters, limits: Limits, ask: Ask, now: Now) -> None:
    limit = limits.tokens_per_month
    if limit is None or meters.month.taken + ask.tokens <= limit:
        return
    left = limit - meters.month.taken
    if left <= 0:
        raise month_reached(limit, meters.month.taken, now)
    refusal = month_reached(limit, meters.month.taken, now)
    refusal.message = (
        f"{left} of tokens_per_month={limit} are left, and this request needs about {ask.prompt_tokens} for its prompt "
        f"and {ask.completion_tokens} for its answer: ask for less, or wait for {refusal.message.rpartition(' ')[2]}"
    )
    raise refusal


def _check_concurrency(meters: KeyMeters, limits: Limits) -> None:
    limit = limits.concurrent_requests
    if limit is not None and meters.in_flight >= limit:
        message = f"concurrent_requests={limit}: that many requests of this key are running"
        raise LimitReached(Rule.CONCURRENT_REQUESTS, message, 1.0)


def _check_requests(meters: KeyMeters, limits: Limits, now: Now) -> None:
    limit = limits.requests_per_minute
    if limit is not None and (wait := meters.requests.wait_s(limit, now.monotonic_s)) > 0:
        message = f"requests_per_minute={limit} is reached: try again in {wait:.1f} s"
        raise LimitReached(Rule.REQUESTS_PER_MINUTE, message, wait)


def _check_tokens(meters: KeyMeters, limits: Limits, ask: Ask, now: Now) -> None:
    limit = limits.tokens_per_minute
    if limit is None:
        return
    if ask.tokens > limit:
        message = (
            f"tokens_per_minute={limit}: this request needs about {ask.prompt_tokens} tokens for its prompt and "
            f"{ask.completion_tokens} for its answer, so it never fits: shorten it or lower max_tokens"
        )
        raise LimitReached(Rule.TOKENS_PER_MINUTE, message, None)
    if (wait := meters.tokens.wait_s(ask.tokens, limit, now.monotonic_s)) > 0:
        message = f"tokens_per_minute={limit}: {ask.tokens} tokens are free in {wait:.1f} s"
        raise LimitReached(Rule.TOKENS_PER_MINUTE, message, wait)
