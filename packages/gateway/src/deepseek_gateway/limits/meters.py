"""The state behind each kind of rule in one process. It is asked first and charged after, so that several are one step.

A meter gives what it could hold of an ask (`room`), takes it (`take`), and gets it replaced by what was used (`give`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from deepseek_gateway.limits.rules import Now
from deepseek_gateway.limits.windows import Window

TOLERANCE = 1e-9
"""Seconds, or tokens, that rounding may cost."""


class MeterState(Protocol):
    """One counter."""

    def room(self, limit: int, now: Now) -> float:
        """How much can be held now; below zero is a debt."""
        ...

    def wait_s(self, amount: int, limit: int, now: Now) -> float | None:
        """Seconds until so much fits; None when it never does, or nobody knows."""
        ...

    def take(self, amount: int, limit: int, now: Now) -> None:
        """Hold."""
        ...

    def give(self, held: int, used: int, limit: int, now: Now) -> None:
        """Replace what was held by what was used."""
        ...

    def reset_s(self, limit: int, now: Now) -> float:
        """Seconds until nothing is used any more."""
        ...

    def is_idle(self, now: Now) -> bool:
        """Whether forgetting it changes nothing."""
        ...


@dataclass(slots=True)
class RequestState:
    """Requests a minute, by the generic cell rate algorithm: one number, and an exact time to retry.

    `theoretical_s` is when the bucket would be full again. Source: ITU-T I.371, virtual scheduling.
    """

    theoretical_s: float = float("-inf")

    def room(self, limit: int, now: Now) -> float:
        """Requests that fit."""
        ahead = max(0.0, self.theoretical_s - now.monotonic_s)
        return (60 - ahead) * limit / 60 + 1e-6

    def wait_s(self, amount: int, limit: int, now: Now) -> float | None:
        """Seconds until `amount` fit."""
        return max(0.0, self.theoretical_s - now.monotonic_s + amount * 60 / limit - 60)

    def take(self, amount: int, limit: int, now: Now) -> None:
        """Count them."""
        self.theoretical_s = max(self.theoretical_s, now.monotonic_s) + amount * 60 / limit

    def give(self, held: int, used: int, limit: int, now: Now) -> None:
        """A request that was counted stays counted."""

    def reset_s(self, limit: int, now: Now) -> float:  # noqa: ARG002  the same for all meters
        """Seconds until the bucket is full."""
        return max(0.0, self.theoretical_s - now.monotonic_s)

    def is_idle(self, now: Now) -> bool:
        """Full."""
        return self.theoretical_s <= now.monotonic_s


@dataclass(slots=True)
class TokenState:
    """Tokens a minute: a bucket that refills steadily. Below zero is a debt that the refill pays first."""

    level: float
    at_s: float

    def room(self, limit: int, now: Now) -> float:
        """Tokens in the bucket, refilled to now. A clock that goes back refills nothing."""
        if now.monotonic_s > self.at_s:
            self.level += (now.monotonic_s - self.at_s) * limit / 60
            self.at_s = now.monotonic_s
        self.level = min(self.level, float(limit))
        return self.level + TOLERANCE

    def wait_s(self, amount: int, limit: int, now: Now) -> float | None:
        """Seconds until so many are there."""
        return None if amount > limit else max(0.0, (amount - self.room(limit, now)) * 60 / limit)

    def take(self, amount: int, limit: int, now: Now) -> None:
        """Take tokens, after the refill: one that came later would fill up what was overdrawn before."""
        self.room(limit, now)
        self.level -= amount

    def give(self, held: int, used: int, limit: int, now: Now) -> None:
        """Give back what was not used, up to a full bucket."""
        self.room(limit, now)
        self.level = min(self.level + held - used, float(limit))

    def reset_s(self, limit: int, now: Now) -> float:
        """Seconds until the bucket is full."""
        return max(0.0, (limit - self.room(limit, now)) * 60 / limit)

    def is_idle(self, now: Now) -> bool:
        """Not in debt, and not asked for as long as it takes to be full."""
        return self.level >= 0 and now.monotonic_s - self.at_s >= 60


@dataclass(slots=True)
class SlotState:
    """Requests at a time; `others` counts those that others let in."""

    running: int = 0
    others: Callable[[], int] | None = None

    def room(self, limit: int, now: Now) -> float:  # noqa: ARG002
        """Free places."""
        return limit - self.running - (0 if self.others is None else self.others())

    def wait_s(self, amount: int, limit: int, now: Now) -> float | None:  # noqa: ARG002
        """Nobody knows when one ends: a second is a fair guess."""
        return 1.0

    def take(self, amount: int, limit: int, now: Now) -> None:  # noqa: ARG002
        """Occupy places."""
        self.running += amount

    def give(self, held: int, used: int, limit: int, now: Now) -> None:  # noqa: ARG002
        """Free them."""
        self.running -= held

    def reset_s(self, limit: int, now: Now) -> float:  # noqa: ARG002
        """Unknown."""
        return 0.0

    def is_idle(self, now: Now) -> bool:  # noqa: ARG002
        """Nobody runs."""
        return self.running == 0


@dataclass(slots=True)
class WindowState:
    """A budget of one calendar window: spent, and held by requests that run."""

    window: Window
    used: int
    held: int = 0

    def room(self, limit: int, now: Now) -> float:  # noqa: ARG002
        """What nobody has."""
        return limit - self.used - self.held

    def wait_s(self, amount: int, limit: int, now: Now) -> float | None:  # noqa: ARG002
        """Waiting does not help a caller: budgets are for people to raise."""
        return None

    def take(self, amount: int, limit: int, now: Now) -> None:  # noqa: ARG002
        """Hold."""
        self.held += amount

    def give(self, held: int, used: int, limit: int, now: Now) -> None:  # noqa: ARG002
        """Spend `used`."""
        self.held -= held
        self.used += used

    def reset_s(self, limit: int, now: Now) -> float:  # noqa: ARG002
        """Seconds until the window ends."""
        return max(0.0, self.window.end - now.wall_s)

    def is_idle(self, now: Now) -> bool:
        """Over; the ledger knows it."""
        return self.held == 0 and now.wall_s >= self.window.end
