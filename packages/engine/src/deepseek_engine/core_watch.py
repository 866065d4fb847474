"""The API process's watch over the core: whether it is heard of, and what its heartbeats say."""

from dataclasses import dataclass
from typing import Final

from deepseek_engine.messages import Heartbeat, StepTotals

BEATS_MISSED: Final = 5
"""So many heartbeats have to stay out before anybody is told."""

_NOTHING_SAID: Final = Heartbeat(step_s=0.0, steps=StepTotals({}, {}))


@dataclass(frozen=True, slots=True)
class CoreVitals:
    """How the core is doing.

    Attributes:
        silence_s: since anything came from it.
        heartbeat: the last one.
        trouble: why it does not serve as it should, for people; None while it does.
    """

    silence_s: float = 0.0
    heartbeat: Heartbeat = _NOTHING_SAID
    trouble: str | None = None


class CoreWatch:
    """Counts silence in beats of this process's own, so that a pause of both is none.

    Args:
        heartbeat_s, step_timeout_s, step_exit_s: see `EngineConfig`.
    """

    def __init__(self, heartbeat_s: float, step_timeout_s: float, step_exit_s: float) -> None:
        self.beat_s = heartbeat_s
        self._step_timeout_s = step_timeout_s
        self._step_exit_s = step_exit_s
        self._silence_s = 0.0
        self._heartbeat = _NOTHING_SAID

    @property
    def vitals(self) -> CoreVitals:
        """As of now."""
        return CoreVitals(self._silence_s, self._heartbeat, self._trouble)

    @property
    def is_lost(self) -> bool:
        """Whether it has been silent for longer than any step may last, so that nothing will come any more."""
        return self._silence_s >= self._step_exit_s + BEATS_MISSED * self.beat_s

    def hear(self, heartbeat: Heartbeat | None = None) -> None:
        """Something came from the core."""
        self._silence_s = 0.0
        if heartbeat is not None:
            self._heartbeat = heartbeat

    def beat(self, elapsed_s: float) -> None:
        """Time has passed."""
        self._silence_s += min(elapsed_s, 2 * self.beat_s)

    @property
    def _trouble(self) -> str | None:
        if self._silence_s >= BEATS_MISSED * self.beat_s:
            return f"the engine core has not been heard of for {self._silence_s:.1f} s"
        step_s = self._heartbeat.step_s
        if step_s >= self._step_timeout_s:
            return f"a step of the engine has not ended for {step_s:.1f} s, step_timeout_s={self._step_timeout_s:g}"
        return None
