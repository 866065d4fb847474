"""The state behind each limit. A meter is asked first and charged after, so that several can be asked as one step."""

from dataclasses import dataclass
from datetime import UTC, datetime

TOLERANCE = 1e-9
"""Seconds, or tokens, that rounding may cost."""


@dataclass(slots=True)
class RequestMeter:
    """Requests a minute, by the generic cell rate algorithm: one number a key, and an exact time to retry.

    `theoretical_s` is when the bucket would be full again. Source: ITU-T I.371, virtual scheduling.
    """

    theoretical_s: float = float("-inf")

    def wait_s(self, per_minute: int, now_s: float) -> float:
        """Seconds until one more request fits; 0 when it does now."""
        ahead = max(self.theoretical_s, now_s) + 60 / per_minute - now_s
        return max(0.0, ahead - 60) if ahead > 60 + TOLERANCE else 0.0

    def charge(self, per_minute: int, now_s: float) -> None:
        """Count one request."""
        self.theoretical_s = max(self.theoretical_s, now_s) + 60 / per_minute

    def remaining(self, per_minute: int, now_s: float) -> int:
        """Requests that fit now."""
        ahead = max(0.0, self.theoretical_s - now_s)
        return max(0, int((60 - ahead) * per_minute / 60 + 1e-6))

    def reset_s(self, now_s: float) -> float:
        """Seconds until the bucket is full."""
        return max(0.0, self.theoretical_s - now_s)


@dataclass(slots=True)
class TokenMeter:
    """Tokens a minute: a bucket that refills steadily. Below zero is a debt that the refill pays first."""

    level: float | None = None
    at_s: float = 0.0

    def available(self, per_minute: int, now_s: float) -> float:
        """Tokens in the bucket, refilled to now. A clock that goes back refills nothing."""
        if self.level is None:
            self.level = float(per_minute)
        elif now_s > self.at_s:
            self.level += (now_s - self.at_s) * per_minute / 60
        self.level = min(self.level, float(per_minute))
        self.at_s = max(self.at_s, now_s)
        return self.level

    def wait_s(self, tokens: int, per_minute: int, now_s: float) -> float:
        """Seconds until `tokens` are there; 0 when they are."""
        return max(0.0, (tokens - TOLERANCE - self.available(per_minute, now_s)) * 60 / per_minute)

    def charge(self, tokens: int, per_minute: int, now_s: float) -> None:
        """Take tokens; a negative number gives them back, up to a full bucket."""
        self.level = min(self.available(per_minute, now_s) - tokens, float(per_minute))

    def reset_s(self, per_minute: int, now_s: float) -> float:
        """Seconds until the bucket is full."""
        return (per_minute - self.available(per_minute, now_s)) * 60 / per_minute


@dataclass(slots=True)
class MonthMeter:
    """Tokens of a calendar month (UTC): spent, and held by requests that run."""

    month: str = ""
    used: int = 0
    held: int = 0

    def roll(self, month: str) -> None:
        """Begin a new month at zero. What a request admitted last month uses counts there."""
        if month > self.month:
            self.month, self.used, self.held = month, 0, 0

    @property
    def taken(self) -> int:
        """Tokens that nobody else may have."""
        return self.used + self.held


def month_of(wall_s: float) -> str:
    """The calendar month of a Unix time, as `2026-11`."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m")


def month_start(wall_s: float) -> float:
    """Unix time at which the month of `wall_s` began."""
    now = datetime.fromtimestamp(wall_s, UTC)
    return datetime(now.year, now.month, 1, tzinfo=UTC).timestamp()


def next_month_start(wall_s: float) -> float:
    """Unix time at which the next month begins."""
    now = datetime.fromtimestamp(wall_s, UTC)
    return datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC).timestamp()
