"""A breaker: leaves an engine alone that fails, longer each time, and lets one request try before all return."""

import enum
from collections import deque
from dataclasses import dataclass, field

FIRST_REST_S = 0.5
WINDOW = 50
"""Latest outcomes that the rate is taken over."""

MIN_OUTCOMES = 20
"""Fewer say nothing about a rate."""

MAX_FAULT_RATE = 0.5


class Health(enum.Enum):
    """`HALF_OPEN`: the rest is over, and one request or probe is trying."""

    UP = "up"
    DOWN = "down"
    HALF_OPEN = "half_open"


class Outcome(enum.Enum):
    """What a try says of an engine.

    `GOOD`: it answered. `SICK`: it failed this request, which may be the request's fault (500): only the rate counts.
    `FAULT`: it broke off or was silent: a few in a row open the breaker. `THROTTLED`: it answered that this was too
    much (429): it rests as long as it says, if it says. `BUSY`: it says that it takes nothing now.
    `GONE`: it cannot be reached. The last two open the breaker at once, whatever the cap on ejections says.
    """

    GOOD = "good"
    SICK = "sick"
    FAULT = "fault"
    THROTTLED = "throttled"
    BUSY = "busy"
    GONE = "gone"


@dataclass(slots=True)
class Breaker:
    """One engine's breaker. Times are monotonic seconds and handed in.

    Args:
        max_rest_s: longest time that it is left alone.
        max_consecutive: faults in a row that open it.
    """

    max_rest_s: float
    max_consecutive: int = 3
    health: Health = Health.UP
    retry_at_s: float = 0.0
    num_opened: int = 0
    _is_gone: bool = False
    _rests: int = 0
    _consecutive: int = 0
    _outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def is_up(self) -> bool:
        """Whether it takes traffic, Retry-After apart."""
        return self.health is Health.UP

    def may_try(self, now_s: float) -> bool:
        """Whether a request may go there: it is up, or has rested for long enough that one may try."""
        return self.health is not Health.HALF_OPEN and now_s >= self.retry_at_s

    def may_probe(self, now_s: float) -> bool:
        """Whether a probe may bring it back: at any time if it was gone, after its rest if it misbehaved."""
        return self.health is Health.UP or (self.health is Health.DOWN and (self._is_gone or now_s >= self.retry_at_s))

    def begin(self) -> bool:
        """A request goes there; True if it is the one that tries whether the engine is back."""
        if self.health is not Health.DOWN:
            return False
        self.health = Health.HALF_OPEN
        return True

    def gave_up(self) -> None:
        """The one that tried ended without an outcome: another may try."""
        if self.health is Health.HALF_OPEN:
            self.health = Health.DOWN

    def rest(self, now_s: float, seconds: float) -> None:
        """It answered, and asks to be left alone for a while (Retry-After)."""
        self.retry_at_s = max(self.retry_at_s, now_s + min(seconds, self.max_rest_s))

    def note(self, outcome: Outcome, now_s: float, *, may_eject: bool, retry_after_s: float | None = None) -> bool:
        """Take the outcome of a request.

        Args:
            outcome: what it says.
            now_s: the time.
            may_eject: whether the cap on ejections leaves room for this engine.
            retry_after_s: what the engine asked for.

        Returns:
            whether the breaker opened now.
        """
        if outcome is Outcome.GOOD or outcome is Outcome.THROTTLED:
            self._rests = 0
            self.probed(now_s)
            self._outcomes.append(False)
            if retry_after_s is not None:
                self.rest(now_s, retry_after_s)
            return False
        self._outcomes.append(True)
        self._consecutive += outcome is not Outcome.SICK
        was_up = self.is_up
        if self.health is Health.DOWN:
            return False  # it was sent before; its rest has begun
        if was_up and not self._is_enough(outcome, may_eject=may_eject):
            if retry_after_s is not None:
                self.rest(now_s, retry_after_s)
            return False
        rest_s = min(FIRST_REST_S * 2 ** min(self._rests, 16), self.max_rest_s)
        if retry_after_s is not None:
            rest_s = min(max(rest_s, retry_after_s), self.max_rest_s)
        self.health, self.retry_at_s, self._is_gone = Health.DOWN, now_s + rest_s, outcome is Outcome.GONE
        self._rests += 1
        self.num_opened += was_up
        return was_up

    def probed(self, now_s: float) -> None:
        """A probe, or a request, found it well. Its next rest is as long as ever until a request has."""
        self._consecutive = 0
        if not self.is_up:
            self.health, self.retry_at_s = Health.UP, min(self.retry_at_s, now_s)
            self._outcomes.clear()  # what was before its rest says nothing about it now

    def missed(self, now_s: float) -> bool:
        """A probe did not find it; gives whether the breaker opened now. Rests do not grow by probes."""
        was_up = self.is_up
        if self.health is not Health.HALF_OPEN:
            self.health, self._is_gone = Health.DOWN, True
            self.retry_at_s = max(self.retry_at_s, now_s + FIRST_REST_S)
            self.num_opened += was_up
        return was_up

    def _is_enough(self, outcome: Outcome, *, may_eject: bool) -> bool:
        if outcome in {Outcome.GONE, Outcome.BUSY}:
            return True
        if not may_eject:
            return False
        is_rate_bad = len(self._outcomes) >= MIN_OUTCOMES and sum(self._outcomes) > MAX_FAULT_RATE * len(self._outcomes)
        return self._consecutive >= self.max_consecutive or is_rate_bad
