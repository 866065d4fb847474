"""Reserve before a call, extend while it streams, settle after it: what both limiters do.

All rules of a request are asked, then all are charged, as one atomic step.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.rulebook import Meter, Plan
from deepseek_gateway.limits.rules import Amounts, Ask, Kind, LimitReached, LimitRule, LimitsUnavailable, Standing
from deepseek_gateway.limits.windows import Window

Spent = Callable[[Meter, Window], Awaitable[int]]
"""What the ledger says was spent under a budget in a window, in the budget's unit."""


@dataclass(slots=True)
class Reservation:
    """What one running request holds; `states` and `owner` are its limiter's own notes."""

    request_id: str
    plan: Plan
    tokens: int
    nano: int
    states: Any
    standings: tuple[Standing, ...] = ()
    crossed: list["Crossing"] = field(default_factory=list["Crossing"])
    is_settled: bool = False
    owner: Any = None

    @property
    def left(self) -> Amounts:
        """What its rules had left beside it when it was let in; nothing of what none of them limits."""
        tokens = nano = None
        for rule, remaining, _ in self.standings:
            unit = rule.kind.unit
            if unit == "tokens":
                tokens = remaining if tokens is None or remaining < tokens else tokens
            elif unit == "money":
                nano = remaining if nano is None or remaining < nano else nano
        return Amounts(tokens or 0, nano or 0)


@dataclass(frozen=True, slots=True)
class Crossing:
    """A soft limit that is over its amount with this request; `window` is None for rates and concurrency.

    Soft limits of tokens and money count what was used, at its settlement: what is only held is mostly given back.
    """

    meter: Meter
    window: Window | None
    taken: int


class Limiter(Protocol):
    """Keeps rules. `settle` returns at once; `settled` waits until what was given back can be had by others."""

    async def start(self) -> None:
        """Begin."""
        ...

    async def admit(self, request_id: str, plan: Plan, ask: Ask) -> Reservation:
        """Let a request in and hold what it asks.

        Raises:
            LimitReached: a rule has no room; nothing was charged.
            LimitsUnavailable: a rule cannot be checked now.
        """
        ...

    async def extend(self, reservation: Reservation, more: Amounts) -> Amounts:
        """Hold more, as much as there is; gives what it got."""
        ...

    def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Replace what was held by what was used, and free the request's place. A second call does nothing.

        Soft limits that it went over are in `crossed` then, or told as soon as they are known.
        """
        ...

    async def settled(self, reservation: Reservation) -> None:
        """Wait until a settlement is known to all, but not for long."""
        ...

    def standings(self, reservation: Reservation) -> tuple[Standing, ...]:
        """How the hard rules of a settled request stand, as far as is known."""
        ...

    def settle_recovered(self, rows: Sequence[LedgerRow]) -> None:
        """Replace what requests of a process that died held by what its journal said."""
        ...

    def reached(self, reservation: Reservation) -> LimitReached | LimitsUnavailable:
        """The refusal for a running request that cannot extend."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why rules are not kept as written just now, or None."""
        ...

    async def close(self) -> None:
        """Give back what this process holds, and end."""
        ...


@dataclass(frozen=True, slots=True)
class Shortage:
    """One rule without room: what was needed and left, and when it fits (None: never, or nobody knows)."""

    rule: LimitRule
    needed: int
    left: int
    wait_s: float | None
    window: Window | None = None


def refusal(shortages: list[Shortage], ask: Ask) -> LimitReached:
    """The refusal of the rule that takes longest: a retry after its time meets no other of these."""
    worst = max(shortages, key=lambda shortage: math.inf if shortage.wait_s is None else shortage.wait_s)
    return LimitReached(worst.rule, _message(worst, ask), worst.wait_s)


def used_up(rule: LimitRule, window: Window | None) -> LimitReached:
    """The refusal of a running stream."""
    if window is not None:
        return LimitReached(rule, f"{name_of(rule)} is used up: {_ending(rule, window)}", None)
    return LimitReached(rule, f"{name_of(rule)} is used up: the answer ends here", 1.0)


def name_of(rule: LimitRule) -> str:
    """A rule as messages call it: `tokens_per_minute=6000`, with whom it is for unless it is the key's own."""
    text = f"{rule.kind}={rule.kind.shown(rule.limit)}"
    if rule.kind is Kind.BALANCE:
        text = "the prepaid balance"
    if rule.id.startswith(("key:", "balance:")):
        return text
    named = (
        ("organisation", rule.org_id),
        ("team", rule.team_id),
        ("user", rule.user_id),
        ("key", rule.key_id),
        ("model", rule.model),
    )
    whom = ", ".join(f"each {name}" if value == "*" else f"{name} {value}" for name, value in named if value)
    return f"{text} (rule {rule.id}{': ' if whom else ''}{whom})"


def _message(shortage: Shortage, ask: Ask) -> str:
    rule, wait = shortage.rule, shortage.wait_s
    name, needs = name_of(rule), "needs" if ask.is_exact else "needs about"
    if shortage.window is not None:
        left, needed = rule.kind.shown(max(0, shortage.left)), rule.kind.shown(shortage.needed)
        if rule.kind is Kind.BALANCE:
            return f"Insufficient Balance: {left} is left, and this request {needs} {needed}"
        if shortage.left <= 0:
            return f"{name} is used up: {_ending(rule, shortage.window)}"
        return (
            f"{left} of {name} are left, and this request {needs} {needed} "
            f"({ask.prompt_tokens} tokens for its prompt and {ask.completion_tokens} for its answer): ask for less, or "
            f"wait until {_ending(rule, shortage.window)}"
        )
    if rule.kind is Kind.CONCURRENT_REQUESTS:
        return f"{name}: that many requests are running"
    if wait is None:
        return (
            f"{name}: this request {needs} {ask.prompt_tokens} tokens for its prompt and {ask.completion_tokens} "
            "for its answer, so it never fits: shorten it or lower max_tokens"
        )
    wait = math.ceil(wait * 10) / 10  # rounded up: who waits so long finds room
    if rule.kind is Kind.REQUESTS_PER_MINUTE:
        return f"{name} is reached: try again in {wait:.1f} s"
    return f"{name}: {shortage.needed} tokens are free in {wait:.1f} s"


def _ending(rule: LimitRule, window: Window) -> str:
    return "top it up" if rule.kind is Kind.BALANCE else f"it resets at {window.resets_at}"
