"""How long the parts of a start take."""

import time
from collections.abc import Generator
from contextlib import contextmanager


class StartClock:
    """Adds up seconds by part.

    Attributes:
        seconds: of each part, in the order of their beginnings.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """What runs within counts as this part."""
        began = time.monotonic()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - began

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
