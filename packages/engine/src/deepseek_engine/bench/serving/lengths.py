"""Distributions of prompt and answer lengths, written as on the command line."""

import random
from collections.abc import Callable
from dataclasses import dataclass

MAX_LENGTH = 1_000_000

_SHAPES: dict[str, Callable[[random.Random, float, float], float]] = {
    "uniform": lambda rng, low, high: rng.randint(int(low), int(high)),
    "normal": lambda rng, mean, deviation: rng.gauss(mean, deviation),
    "lognormal": lambda rng, median, sigma: median * rng.lognormvariate(0.0, sigma),
}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Draws lengths in tokens, never below 1.

    Attributes:
        text: as it was written: `128`, `uniform:64:512`, `normal:256:64` (mean and deviation) or `lognormal:256:0.8`
            (median, and deviation of the logarithm).
    """

    text: str
    shape: str
    first: float
    second: float

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """Read a distribution.

        Raises:
            ValueError: it is none.
        """
        shape, *numbers = text.split(":")
        if not numbers:
            shape, numbers = "uniform", [text, text]
        try:
            first, second = map(float, numbers)
        except ValueError:
            first = second = -1.0
        is_range = shape != "uniform" or (first <= second and first.is_integer() and second.is_integer())
        if shape not in _SHAPES or not 1 <= first <= MAX_LENGTH or not 0 <= second <= MAX_LENGTH or not is_range:
            raise ValueError(
                f"{text!r} is no distribution of lengths: write 128, uniform:64:512, normal:256:64 or lognormal:256:0.8"
            )
        return cls(text, shape, first, second)

    def draw(self, rng: random.Random) -> int:
        """One length."""
        return min(max(round(_SHAPES[self.shape](rng, self.first, self.second)), 1), MAX_LENGTH)
