"""Budgets of extra work: retries and hedges are a share of requests, so that they cannot make an overload worse."""

from dataclasses import dataclass

SAMPLES = 256
MIN_SAMPLES = 50


@dataclass(slots=True)
class Budget:
    """Each request pays in `share`, each extra costs 1; at most `most` is kept, of which `level` is there at first.

    With `level` 0 there are never more extras than `share` of the requests.
    """

    share: float
    most: float
    level: float = 0.0

    def earn(self) -> None:
        """Count a request."""
        self.level = min(self.most, self.level + self.share)

    def spend(self) -> bool:
        """Take one extra; False if there is none left."""
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def give_back(self) -> None:
        """The extra did not happen."""
        self.level = min(self.most, self.level + 1)


class SlowestTwentieth:
    """The 95th percentile of the latest times."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._next = 0
        self._value: float | None = None

    @property
    def value(self) -> float | None:
        """The percentile; None until enough is known."""
        if self._value is None and len(self._times) >= MIN_SAMPLES:
            self._value = sorted(self._times)[int(len(self._times) * 0.95)]
        return self._value

    def add(self, seconds: float) -> None:
        """Take one time."""
        if len(self._times) < SAMPLES:
            self._times.append(seconds)
        else:
            self._times[self._next] = seconds
            self._next = (self._next + 1) % SAMPLES
        if self._next % 16 == 0:
            self._value = None
