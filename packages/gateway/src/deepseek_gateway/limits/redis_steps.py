"""What goes into the limiter's scripts, and what comes out: names and numbers, no I/O."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_gateway.limits.limiter import Crossing, Shortage
from deepseek_gateway.limits.local import amount_of
from deepseek_gateway.limits.rulebook import Plan
from deepseek_gateway.limits.rules import Amounts, Ask, Kind, Standing
from deepseek_gateway.limits.windows import Calendar, Window

KEPT_AFTER_S = 8 * 86400
"""Seconds that a window is kept after its end: what ran into the next one settles there."""

GATEWAYS = "dsg:{gateways}:"

_LETTERS = {
    Kind.REQUESTS_PER_MINUTE: "r",
    Kind.TOKENS_PER_MINUTE: "t",
    Kind.CONCURRENT_REQUESTS: "s",
    Kind.TOKENS_PER_DAY: "w",
    Kind.TOKENS_PER_MONTH: "w",
    Kind.MONEY_PER_DAY: "m",
    Kind.MONEY_PER_MONTH: "m",
    Kind.BALANCE: "m",
}


def prefix_of(tag: str) -> str:
    """Where the keys of a tag begin. The braces keep them in one slot of a cluster."""
    return f"dsg:{{{tag}}}:"


@dataclass(frozen=True, slots=True)
class Steps:
    """One request's keys and arguments."""

    request_id: str
    plan: Plan
    windows: tuple[Window | None, ...]
    keys: tuple[str, ...]

    @classmethod
    def of(cls, request_id: str, plan: Plan, calendar: Calendar, wall_s: float) -> "Steps":
        """The steps of a request that is admitted now."""
        windows: list[Window | None] = []
        keys: list[str] = []
        for meter in plan.meters:
            period = meter.kind.period
            window = None if period is None else calendar.window(period, meter.rule.time_zone, wall_s)
            windows.append(window)
            end = "" if window is None else f":{window.start:.0f}"
            keys.append(f"{prefix_of(meter.tag)}m:{meter.counter}{end}")
        return cls(request_id, plan, tuple(windows), tuple(keys))

    @property
    def head(self) -> list[str]:
        """Keys of the tag: epoch, leases, and the request's record."""
        prefix = prefix_of(self.plan.tag)
        return [f"{prefix}epoch", f"{prefix}leases", f"{prefix}r:{self.request_id}"]

    @property
    def orphan(self) -> str:
        """Key of what is known after its lease ran out."""
        return f"{prefix_of(self.plan.tag)}o:{self.request_id}"

    def meters(self, inits: Sequence[str] | None = None) -> list[str | int]:
        """Each meter's arguments, and what the ledger says where it is asked for."""
        arguments: list[str | int] = []
        for index, (meter, window) in enumerate(zip(self.plan.meters, self.windows, strict=True)):
            ends_ms = 0 if window is None else int((window.end + KEPT_AFTER_S) * 1000)
            arguments += [_LETTERS[meter.kind], meter.limit, int(meter.is_soft), ends_ms]
            if inits is not None:
                arguments.append(inits[index])
        return arguments

    def standings(self, rooms: Sequence[float], wall_s: float) -> tuple[Standing, ...]:
        """How the hard rules stand."""
        standings: list[Standing] = []
        for meter, window, room in zip(self.plan.meters, self.windows, rooms, strict=True):
            if meter.is_soft:
                continue
            if window is not None:
                reset_s = max(0.0, window.end - wall_s)
            else:
                is_slot = meter.kind is Kind.CONCURRENT_REQUESTS
                reset_s = 0.0 if is_slot else max(0.0, (meter.limit - room) * 60 / meter.limit)
            standings.append(Standing(meter.rule, max(0, math.floor(room + 1e-6)), reset_s))
        return tuple(standings)

    def shortages(self, rooms: Sequence[float], ask: Ask) -> list[Shortage]:
        """The hard rules that had no room."""
        found: list[Shortage] = []
        for meter, window, room in zip(self.plan.meters, self.windows, rooms, strict=True):
            least, left = amount_of(meter, ask.least.tokens, ask.least.nano), math.floor(room + 1e-6)
            if meter.is_soft or left >= least:
                continue
            wait_s: float | None = None
            if meter.kind is Kind.CONCURRENT_REQUESTS:
                wait_s = 1.0
            elif window is None and least <= meter.limit:
                wait_s = (least - room) * 60 / meter.limit
            found.append(Shortage(meter.rule, least, left, wait_s, window))
        return found

    def crossings(self, rooms: Sequence[float], *, is_settled: bool) -> list[Crossing]:
        """The soft rules that are over their limit now: of requests at admission, of what is used at settlement."""
        return [
            Crossing(meter, window, meter.limit - math.floor(room))
            for meter, window, room in zip(self.plan.meters, self.windows, rooms, strict=True)
            if meter.is_soft and meter.is_held != is_settled and room < 0
        ]


def amounts(reply: Sequence[str]) -> Amounts:
    """The tokens and nano-units of an `ok`."""
    return Amounts(int(reply[1]), int(reply[2]))


def rooms(reply: Sequence[str]) -> list[float]:
    """The rooms of an `ok` or a `no`."""
    return [float(text) for text in reply[3 if reply[0] == "ok" else 1 :]]
