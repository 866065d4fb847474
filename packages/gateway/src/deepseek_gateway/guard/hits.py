"""What the filter found."""

from dataclasses import dataclass

from deepseek_gateway.guard.entries import Rule

MAX_HITS = 200
"""Hits that are remembered of one text: a flood of them says no more."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule's words in a text; `start` and `end` are characters of it, `text` is those, `folded` their folded form."""

    rule: Rule
    start: int
    end: int
    text: str
    folded: str
