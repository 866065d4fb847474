"""The word filter on a request: all its texts, before anything reaches an engine."""

from dataclasses import dataclass, field

from deepseek_gateway.guard.entries import Level
from deepseek_gateway.guard.fields import Json, Place, request_texts
from deepseek_gateway.guard.hits import Hit
from deepseek_gateway.guard.matcher import Matcher
from deepseek_gateway.guard.stream import TextFilter


@dataclass(slots=True)
class Screening:
    """What was found: hits with their fields, and the field whose words refuse the request."""

    hits: list[tuple[Hit, str]] = field(default_factory=list[tuple[Hit, str]])
    blocked_field: str | None = None


def screen_request(matcher: Matcher, fields: Json) -> Screening:
    """Filter a request's texts where they stand: masked words are replaced in `fields`.

    The parts of a message are one text: templates put them together.
    """
    found = Screening()
    text_filter: TextFilter | None = None
    last: Place | None = None
    for place in list(request_texts(fields)):
        is_next_part = last is not None and place.is_part and last.is_part and place.field == last.field
        if last is not None and text_filter is not None and not is_next_part:
            _finish(text_filter, last)
            _note(found, text_filter, last)
            text_filter = None
        if text_filter is None:
            text_filter = TextFilter(matcher, is_json=place.is_json)
        text = place.text
        out = text_filter.feed(text)
        if out is not text and not place.is_key:
            place.holder[place.key] = out
        last = place
    if last is not None and text_filter is not None:
        _finish(text_filter, last)
        _note(found, text_filter, last)
    return found


def _finish(text_filter: TextFilter, last: Place) -> None:
    rest = text_filter.finish()
    if rest and not last.is_key:
        last.holder[last.key] += rest


def _note(found: Screening, text_filter: TextFilter, place: Place) -> None:
    found.hits.extend((hit, place.field) for hit in text_filter.hits)
    # A key of an object cannot be masked, as something else may name it: words there refuse the request.
    is_masked_key = place.is_key and any(hit.rule.level is Level.MASK for hit in text_filter.hits)
    if found.blocked_field is None and (text_filter.is_blocked or is_masked_key):
        found.blocked_field = place.field
