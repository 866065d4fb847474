"""Rules, whom they concern, and the refusal that names the one reached."""

import hashlib
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from deepseek_gateway.money.amounts import money_text

MAX_LIMIT = 2**53 - 1
"""Largest limit: whole numbers up to here are exact in Lua and JSON. As nano-units it is nine million of a currency."""

EACH = "*"
"""As a rule's subject: every one of them has the limit for itself."""

_FAMILIES = {
    "requests_per_minute": "requests",
    "tokens_per_minute": "tokens",
    "tokens_per_day": "tokens",
    "tokens_per_month": "tokens",
}


class Kind(StrEnum):
    """What a rule limits. A value is also the `code` of a 429. `family` is which of the response headers tell of it."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    CONCURRENT_REQUESTS = "concurrent_requests"
    TOKENS_PER_DAY = "tokens_per_day"
    TOKENS_PER_MONTH = "tokens_per_month"
    MONEY_PER_DAY = "money_per_day"
    MONEY_PER_MONTH = "money_per_month"
    BALANCE = "balance"

    def __init__(self, name: str) -> None:
        self.family = _FAMILIES.get(name)

    @property
    def unit(self) -> "Unit":
        """What is counted."""
        return _UNITS[self]

    @property
    def period(self) -> "Period | None":
        """The calendar window of a budget; None for rates and concurrency."""
        return _PERIODS.get(self)

    def shown(self, amount: int) -> int | str:
        """An amount for people and JSON: money as a decimal."""
        return money_text(amount) if self.unit == "money" else amount


Unit = Literal["requests", "tokens", "money"]
Period = Literal["day", "month", "ever"]
FailurePolicy = Literal["deny", "share", ""]

_UNITS: dict[Kind, Unit] = {
    Kind.REQUESTS_PER_MINUTE: "requests",
    Kind.TOKENS_PER_MINUTE: "tokens",
    Kind.CONCURRENT_REQUESTS: "requests",
    Kind.TOKENS_PER_DAY: "tokens",
    Kind.TOKENS_PER_MONTH: "tokens",
    Kind.MONEY_PER_DAY: "money",
    Kind.MONEY_PER_MONTH: "money",
    Kind.BALANCE: "money",
}
_PERIODS: dict[Kind, Period] = {
    Kind.TOKENS_PER_DAY: "day",
    Kind.TOKENS_PER_MONTH: "month",
    Kind.MONEY_PER_DAY: "day",
    Kind.MONEY_PER_MONTH: "month",
    Kind.BALANCE: "ever",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """A key's own limits, the short form of four rules on that key; None is no limit.

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
        return {name: getattr(self, name) for name in Limits.__slots__}


class Subject(NamedTuple):
    """Whose request it is, and for which model."""

    key_id: str
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    model: str | None = None

    @property
    def account(self) -> str:
        """Who pays: the organisation, or the key where there is none."""
        return f"key:{self.key_id}" if self.org_id is None else f"org:{self.org_id}"


@dataclass(frozen=True, slots=True)
class Scope:
    """A set of requests: those that match every field that is not None. A model that ends in `*` is a prefix."""

    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    key_id: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class LimitRule:
    """One limit on all requests that match every subject named; None matches all.

    Attributes:
        limit: requests, tokens, or nano-units of the currency.
        model: a name, or a prefix that ends in `*`; `*` alone is every model for itself, as for the other subjects.
        time_zone: where a day or month begins, such as `Asia/Shanghai`.
        soft: only tell when it is reached, refuse nothing.
        on_failure: what holds while Redis cannot be asked: `deny`, or `share`: each gateway its part of the limit.
            Left empty: deny for budgets, which have no other, and share for rates.
    """

    id: str
    kind: Kind
    limit: int
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    key_id: str | None = None
    model: str | None = None
    time_zone: str = "UTC"
    soft: bool = False
    on_failure: FailurePolicy = ""
    created: float = 0.0

    def __post_init__(self) -> None:
        least = 0 if self.kind is Kind.BALANCE else 1
        if not least <= self.limit <= MAX_LIMIT:
            takes = "an amount of money" if self.kind.unit == "money" else "a whole number"
            shown, first, last = map(self.kind.shown, (self.limit, least, MAX_LIMIT))
            raise ValueError(f"limit={shown}: {self.kind} takes {takes} from {first} to {last}")
        if not self.on_failure:
            object.__setattr__(self, "on_failure", "share" if self.kind.period is None else "deny")
        if self.on_failure == "share" and self.kind.period is not None:
            raise ValueError(f"on_failure=share: {self.kind} is a budget, which only deny keeps while Redis is away")
        if self.kind.period is not None:
            try:
                ZoneInfo(self.time_zone)
            except (OSError, ValueError, KeyError):
                raise ValueError(f"time_zone={self.time_zone!r} is no time zone such as Asia/Shanghai") from None

    def matches(self, subject: Subject) -> bool:
        """Whether a request counts under this rule."""
        return (
            _matches(self.org_id, subject.org_id)
            and _matches(self.team_id, subject.team_id)
            and _matches(self.user_id, subject.user_id)
            and _matches(self.key_id, subject.key_id)
            and (_matches(self.model, subject.model) or _has_prefix(self.model, subject.model))
        )

    def scope(self, subject: Subject) -> "Scope":
        """Which requests share the counter that a request of `subject` counts on."""
        return Scope(
            org_id=_shared(self.org_id, subject.org_id),
            team_id=_shared(self.team_id, subject.team_id),
            user_id=_shared(self.user_id, subject.user_id),
            key_id=_shared(self.key_id, subject.key_id),
            model=_shared(self.model, subject.model),
        )

    @property
    def counted(self) -> str:
        """A name for what it counts, and of whom. One that is changed to count something else begins a new counter."""
        named = (self.kind, self.org_id, self.team_id, self.user_id, self.key_id, self.model, self.time_zone)
        return hashlib.blake2b(repr(named).encode(), digest_size=4).hexdigest()

    def to_json(self) -> dict[str, object]:
        """All of it, for listings."""
        return {**asdict(self), "kind": self.kind.value}


class LimitReached(Exception):  # noqa: N818  an outcome, not a fault
    """A request does not fit under a limit.

    Args:
        rule: the limit.
        message: what was asked, what is left, what to do.
        retry_after_s: when it could fit; None when waiting does not help.
    """

    def __init__(self, rule: LimitRule, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message
        self.retry_after_s = retry_after_s
        self.standings: tuple[Standing, ...] = ()


class LimitsUnavailable(Exception):  # noqa: N818  an outcome, not a fault
    """A rule cannot be checked now, and its policy is to refuse then."""

    def __init__(self, rule: LimitRule | None, message: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message


class Now(NamedTuple):
    """One reading of both clocks: `monotonic_s` for rates, `wall_s` (Unix) for the calendar."""

    monotonic_s: float
    wall_s: float


class Amounts(NamedTuple):
    """What is held or used: tokens, and money in nano-units."""

    tokens: int = 0
    nano: int = 0


class Ask(NamedTuple):
    """What a request needs to begin: `wanted`, or at the very least `least`. The rest is for a refusal's words.

    `is_exact`: the prompt was counted, not estimated.
    """

    prompt_tokens: int
    completion_tokens: int
    wanted: Amounts
    least: Amounts
    is_exact: bool = False


class Standing(NamedTuple):
    """How a rule stands after a request was let in or refused: what the headers say."""

    rule: LimitRule
    remaining: int
    reset_s: float


def _matches(named: str | None, given: str | None) -> bool:
    return named is None or named == given or (named == EACH and given is not None)


def _shared(named: str | None, given: str | None) -> str | None:
    return given if named == EACH else named


def _has_prefix(named: str | None, given: str | None) -> bool:
    return named is not None and given is not None and named.endswith("*") and given.startswith(named[:-1])
