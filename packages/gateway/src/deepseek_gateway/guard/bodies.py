"""Answers in one piece."""

from collections.abc import Callable
from typing import cast

from deepseek_gateway.guard.choices import Choices
from deepseek_gateway.guard.events import REASON, encoded, parsed
from deepseek_gateway.guard.fields import SIDECARS, Json, answer_texts, choices_of, index_of


def filter_body(choices: Choices, answer: Json) -> tuple[bool, bool]:
    """Filter all texts of an answer, in place; says whether it changed, and whether a blocked word was cut out."""
    changed: set[int] = set()
    blocked: set[int] = set()
    places = list(answer_texts(answer))
    for position, place in enumerate(places):
        if place.choice in blocked:
            place.holder[place.key] = ""
            continue
        choice = choices.of(place.choice)
        text_filter, text = choices.filter_of(choice, place), place.text
        out = text_filter.feed(text)
        after = places[position + 1] if position + 1 < len(places) else None
        if after is None or (after.choice, after.field) != (place.choice, place.field):
            out += text_filter.finish()
        if out != text:
            place.holder[place.key] = out
            changed.add(place.choice)
        choices.tell(text_filter, place.choice, place.field)
        if text_filter.is_blocked:
            blocked.add(place.choice)
    for part in choices_of(answer):
        changed.update(_close_body(part, index_of(part), changed | blocked, blocked, choices.has_words))
    return bool(changed or blocked), bool(blocked)


def emptied(body: bytes) -> bytes:
    """An answer without its texts, when the filter could not look at them; nothing at all if it cannot be read."""
    try:
        answer = parsed(body)
        for place in list(answer_texts(answer)):
            place.holder[place.key] = ""
        for part in choices_of(answer):
            part["finish_reason"] = REASON
            for name in SIDECARS:
                part.pop(name, None)
    except ValueError:
        return b'{"choices":[]}'
    return encoded(answer)


def _close_body(
    part: Json, index: int, changed: set[int], blocked: set[int], has_words: Callable[[Json], bool]
) -> set[int]:
    values = {name: part[name] for name in SIDECARS if part.get(name) is not None}
    drops = bool(values) and (index in changed or has_words(values))
    if drops:
        for name in values:
            part[name] = None
    if index in blocked:
        part["finish_reason"] = REASON
        if isinstance(message := part.get("message"), dict):
            cast("Json", message).pop("tool_calls", None)
    return {index} if drops else set()
