"""The choices of an answer: for each the filters of its fields, and what waits for their text."""

from collections.abc import Callable
from dataclasses import dataclass

from deepseek_gateway.guard.entries import Level
from deepseek_gateway.guard.events import merged
from deepseek_gateway.guard.fields import Json, Place, all_strings
from deepseek_gateway.guard.hits import Hit
from deepseek_gateway.guard.matcher import Matcher
from deepseek_gateway.guard.stream import TextFilter

OnHit = Callable[[Hit, int, str], None]
"""Told of each hit: what, in which choice, in which field."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What an event said about its text, which is characters `start` to `end` of a field."""

    text: TextFilter
    start: int
    end: int
    values: Json


class Choice:
    """One answer of a request: its fields' filters, and what waits for them."""

    def __init__(self) -> None:
        self.filters: dict[str, TextFilter] = {}
        self.active: str | None = None
        self.waiting: list[Sidecar] = []
        self.is_finished = False

    def released(self) -> Json:
        """The sidecars whose text has gone out, put together."""
        out: Json = {}
        while self.waiting and self.waiting[0].text.sent >= self.waiting[0].end:
            sidecar = self.waiting.pop(0)
            if sidecar.text.masked_to <= sidecar.start:
                out = merged(out, sidecar.values)
        return out


class Choices:
    """All choices of one answer, by their index.

    Args:
        matcher: the rules for answers.
        on_hit: told of each hit as it is decided.
    """

    def __init__(self, matcher: Matcher, on_hit: OnHit) -> None:
        self._matcher = matcher
        self._on_hit = on_hit
        self.by_index: dict[int, Choice] = {}

    def of(self, index: int) -> Choice:
        """A choice, made when it is first met."""
        choice = self.by_index.get(index)
        if choice is None:
            choice = self.by_index[index] = Choice()
        return choice

    def filter_of(self, choice: Choice, place: Place) -> TextFilter:
        """The filter of a field."""
        text = choice.filters.get(place.field)
        if text is None:
            text = choice.filters[place.field] = TextFilter(self._matcher, is_json=place.is_json)
        return text

    def tell(self, text: TextFilter, choice: int, field: str) -> None:
        """Tell of hits that nobody was told of yet."""
        for hit in text.hits[text.num_told :]:
            self._on_hit(hit, choice, field)
        text.num_told = len(text.hits)

    def has_words(self, values: Json) -> bool:
        """Whether tokens that were not chosen, or their bytes, spell what may not be seen."""
        if not self._matcher.can_change:
            return False
        text = TextFilter(self._matcher)
        text.feed("\n".join(string for string in all_strings(values) if len(string) > 1))
        text.finish()
        return any(hit.rule.level in {Level.BLOCK, Level.MASK} for hit in text.hits)
