"""Names in messages: the first few, and how many more there are."""

from collections.abc import Iterable
from typing import Final

_MAX_NAMES: Final = 5


def listed(names: Iterable[str]) -> str:
    """`a, b, c`, sorted, with `and 7 more` behind the first five."""
    ordered = sorted(names)
    rest = len(ordered) - _MAX_NAMES
    return ", ".join(ordered[:_MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
