"""What the load and the faults of a soak saw, for the verdict."""

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class FaultSeen:
    """One kind of fault: how often it was there, where it showed, and how long it took to be over."""

    times: int = 0
    in_ready: bool = False
    in_metrics: bool = False
    is_healed: bool = True
    heal_s: float = 0.0


@dataclass(slots=True)
class Seen:
    """Everything that was seen. `disconnects` are callers that had an answer and left before its end."""

    answers: Counter[str] = field(default_factory=Counter[str])
    disconnects: int = 0
    half_open_ended: int = 0
    half_open_kept: int = 0
    stuck_ended: int = 0
    stuck_kept: int = 0
    limited_at: list[float] = field(default_factory=list[float])
    limited_now: int = 0
    limited_most: int = 0
    rss: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    faults: dict[str, FaultSeen] = field(default_factory=dict[str, FaultSeen])

    def admitted(self) -> None:
        """A request of the limited key was let in now."""
        self.limited_at.append(time.monotonic())

    def begins(self) -> None:
        """A request of the limited key runs at its engine."""
        self.limited_now += 1
        self.limited_most = max(self.limited_most, self.limited_now)

    def ends(self) -> None:
        """It is about to be over."""
        self.limited_now -= 1
