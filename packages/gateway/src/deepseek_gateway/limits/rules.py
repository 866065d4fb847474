"""The limits of a key, and the refusal that names the one reached."""

from dataclasses import asdict, dataclass, fields
from enum import StrEnum


class Rule(StrEnum):
    """The four limits. A value is also the `code` of the refusal, but for the month's (see `LimitReached`)."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    CONCURRENT_REQUESTS = "concurrent_requests"
    TOKENS_PER_MONTH = "tokens_per_month"


@dataclass(frozen=True, slots=True)
class Limits:
    """A key's limits; None is no limit.

    Rates are buckets that hold one minute's worth: a rested key may use it at once, then at the rate's pace. A month
    is a calendar month in UTC.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_month: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ValueError(f"{field.name}={value}: a limit is at least 1; leave it out for no limit")

    def to_json(self) -> dict[str, int | None]:
        """All four, by name."""
        return asdict(self)


class LimitReached(Exception):  # noqa: N818  an outcome, not a fault
    """A request does not fit under a limit.

    Args:
        rule: the limit.
        message: what was asked, what is left, what to do.
        retry_after_s: when it could fit; None when waiting does not help.
    """

    def __init__(self, rule: Rule, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Now:
    """One reading of both clocks: `monotonic_s` for rates, `wall_s` (Unix) for the calendar."""

    monotonic_s: float
    wall_s: float
