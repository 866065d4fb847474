"""What limits mean, told without cleverness: every question is answered from the whole history."""

from dataclasses import dataclass, field

from deepseek_gateway.limits.limiter import Reservation
from deepseek_gateway.limits.local import amount_of
from deepseek_gateway.limits.rulebook import Meter
from deepseek_gateway.limits.rules import Amounts, Kind
from deepseek_gateway.limits.windows import Window, window_of


@dataclass(slots=True)
class Life:
    """One admitted request: what it held when, and what it used in the end."""

    reservation: Reservation
    admitted_s: float
    holds: list[tuple[float, Amounts]]
    settled_s: float | None = None
    used: Amounts | None = None

    @property
    def held(self) -> Amounts:
        """All that it holds."""
        return Amounts(sum(each.tokens for _, each in self.holds), sum(each.nano for _, each in self.holds))

    def meter(self, counter: str) -> Meter | None:
        """Its meter of a counter."""
        return next((meter for meter in self.reservation.plan.meters if meter.counter == counter), None)


@dataclass(slots=True)
class LimitModel:
    """The history of one limiter. Times are seconds of one clock that only goes on; `start_s` is its Unix time at 0."""

    start_s: float
    lives: list[Life] = field(default_factory=list["Life"])

    def room(self, meter: Meter, now_s: float) -> float:
        """How much of a meter is free."""
        if meter.kind is Kind.CONCURRENT_REQUESTS:
            return meter.limit - sum(life.used is None for life in self._of(meter))
        if meter.kind.period is None:
            return self._bucket(meter, now_s)
        window = self._window(meter, now_s)
        lives = [life for life in self._of(meter) if self._window(meter, life.admitted_s) == window]
        return meter.limit - sum(self._taken(life, meter) for life in lives)

    def is_in_window(self, life: Life, meter: Meter, now_s: float) -> bool:
        """Whether a request counts in the day or month of now."""
        return self._window(meter, life.admitted_s) == self._window(meter, now_s)

    def _of(self, meter: Meter) -> list[Life]:
        return [life for life in self.lives if life.meter(meter.counter) is not None]

    def _taken(self, life: Life, meter: Meter) -> int:
        held = life.held if meter.is_held else Amounts()
        amounts = held if life.used is None else life.used
        return amount_of(meter, amounts.tokens, amounts.nano)

    def _window(self, meter: Meter, at_s: float) -> Window:
        assert meter.kind.period is not None
        return window_of(meter.kind.period, meter.rule.time_zone, self.start_s + at_s)

    def _bucket(self, meter: Meter, now_s: float) -> float:
        """A bucket of a minute's worth, refilled steadily, never fuller than full."""
        changes: list[tuple[float, int, float]] = []
        for number, life in enumerate(self._of(meter)):
            holds = life.holds if meter.is_held else []
            for at_s, amounts in holds[: 1 if meter.kind.unit == "requests" else None]:
                changes.append((at_s, number, -amount_of(meter, amounts.tokens, amounts.nano)))
            if life.settled_s is not None and life.used is not None and meter.kind.unit == "tokens":
                changes.append((life.settled_s, number, (life.held.tokens if meter.is_held else 0) - life.used.tokens))
        level, at_s = float(meter.limit), 0.0
        for then_s, _, change in sorted(changes, key=lambda entry: entry[0]):
            level = min(meter.limit, level + (then_s - at_s) * meter.limit / 60)
            level, at_s = min(meter.limit, level + change), then_s
        return min(meter.limit, level + (now_s - at_s) * meter.limit / 60)
