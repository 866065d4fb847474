"""One request's share of its key's limits: what it holds, and more as its stream grows."""

import time
from dataclasses import dataclass

from deepseek_gateway.limits.limiter import Ask, LocalLimiter, Reservation
from deepseek_gateway.limits.rules import LimitReached, Limits, Now
from deepseek_gateway.relay.request import GenerationRequest


def read_clocks() -> Now:
    """Both clocks, now."""
    return Now(time.monotonic(), time.time())


def ask_of(request: GenerationRequest, limits: Limits, slice_tokens: int, default_max_tokens: int) -> Ask:
    """What a request must hold to begin.

    A stream can extend while it runs, so it begins with a slice. Any other answer is counted only at its end, so it
    holds its worst case. A slice never makes a small limit unusable: it is at most a quarter of it.
    """
    longest = (request.max_tokens or default_max_tokens) * request.choices
    tightest = [limit for limit in (limits.tokens_per_minute, limits.tokens_per_month) if limit is not None]
    if request.stream:
        wanted = slice_tokens if request.max_tokens is None else min(slice_tokens, longest)
        return Ask(request.prompt_estimate, min([wanted, *(max(1, limit // 4) for limit in tightest)]))
    if request.max_tokens is None and tightest:
        # Without a wish of the caller the answer is cut to what fits: see `clamp_of`.
        longest = min(longest, max(1, min(tightest) - request.prompt_estimate))
    return Ask(request.prompt_estimate, longest)


def clamp_of(request: GenerationRequest, limits: Limits, ask: Ask) -> int | None:
    """The max_tokens to set where the caller set none and the answer must fit into what is held."""
    is_limited = limits.tokens_per_minute is not None or limits.tokens_per_month is not None
    if request.stream or request.max_tokens is not None or not is_limited:
        return None
    return max(1, ask.completion_tokens // request.choices)


@dataclass(slots=True)
class Allowance:
    """A reservation, and when to extend it."""

    limiter: LocalLimiter
    reservation: Reservation
    slice_tokens: int
    _refused_at: int = -1

    def covers(self, used: int) -> bool:
        """Whether a stream that has used so many tokens may go on; extends in time, before the slice ends."""
        limits = self.reservation.limits
        if limits.tokens_per_minute is None and limits.tokens_per_month is None:
            return True
        low_water = min(self.slice_tokens // 2, 32)
        missing = used + low_water - self.reservation.held
        if missing > 0 and used != self._refused_at:
            granted = self.limiter.extend(self.reservation, missing + self.slice_tokens, read_clocks())
            self._refused_at = used if granted == 0 else -1
        return used < self.reservation.held

    def reached(self) -> LimitReached:
        """The limit that ends the stream."""
        return self.limiter.reached(self.reservation, read_clocks())

    def settle(self, used: int) -> None:
        """Give back what was not used."""
        self.limiter.settle(self.reservation, used, read_clocks())
