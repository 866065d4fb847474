"""A question about usage, and its answer's lines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_LINES = 10_000
"""Lines of one answer."""


class Dimension(StrEnum):
    """What usage can be added up by, and looked at one value of."""

    HOUR = "hour"
    DAY = "day"
    KEY = "key"
    ORG = "org"
    TEAM = "team"
    USER = "user"
    TAG = "tag"
    MODEL = "model"
    SERVED_MODEL = "served_model"
    ROUTE = "route"
    UPSTREAM = "upstream"
    STATUS = "status"
    REASON = "reason"

    @property
    def is_time(self) -> bool:
        """Whether its values are stretches of time, in the question's zone."""
        return self in _TIMES

    @property
    def is_named(self) -> bool:
        """Whether its values are ids of what has a name."""
        return self in _NAMED

    @property
    def field(self) -> str:
        """What answers and filters call its value."""
        return f"{self.value}_id" if self.is_named else self.value


_TIMES = frozenset({Dimension.HOUR, Dimension.DAY})
_NAMED = frozenset({Dimension.KEY, Dimension.ORG, Dimension.TEAM, Dimension.USER})


class Order(StrEnum):
    """Which lines come first: by their labels, or the largest; where the first dimension is a time, within each."""

    LABELS = "labels"
    TOKENS = "tokens"
    REQUESTS = "requests"
    COST = "cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Requests admitted in [since, until), added up by some dimensions.

    Attributes:
        since: Unix time; None is the beginning of the ledger.
        until: Unix time; None is its end.
        by: at least one, each once.
        zone: of IANA: where hours and days begin.
        only: the one value of each dimension that counts; an empty one is requests without a value.
        order: of the lines.
        limit: lines at most.
        offset: lines to leave out.
    """

    by: tuple[Dimension, ...]
    since: float | None = None
    until: float | None = None
    zone: str = "UTC"
    only: tuple[tuple[Dimension, str], ...] = ()
    order: Order = Order.LABELS
    limit: int = MAX_LINES
    offset: int = 0

    @property
    def together(self) -> "Question":
        """The same requests in at most three lines: of tags, a request counts in several lines."""
        return replace(self, by=(Dimension.STATUS,), order=Order.LABELS, limit=MAX_LINES, offset=0)

    @property
    def dimensions(self) -> frozenset[Dimension]:
        """All that it looks at."""
        return frozenset((*self.by, *(dimension for dimension, _ in self.only)))


@dataclass(frozen=True, slots=True)
class UsageLine:
    """Totals of one combination of values."""

    labels: tuple[str, ...]
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_nano: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


SUMS = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost_nano")
"""What is added up: columns of the rollups, and fields of a line."""


def total_of(lines: Sequence[UsageLine]) -> UsageLine:
    """All lines together."""
    return UsageLine((), *(sum(getattr(line, name) for line in lines) for name in SUMS))
