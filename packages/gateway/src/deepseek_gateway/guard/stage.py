"""The word filter as a stage of the relay: it works on the engine's own events, before any translation.

An event in which nothing changes passes as the bytes that came. What is held back goes out with the next event of its
choice, or in an event of its own before the answer's end. What tells the text again, token by token (`SIDECARS`), waits
with it, and is dropped where words were masked.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson

from deepseek_gateway.guard.entries import Level
from deepseek_gateway.guard.fields import (
    SIDECARS,
    Json,
    Place,
    all_strings,
    answer_texts,
    choices_of,
    delta_for,
    index_of,
)
from deepseek_gateway.guard.matcher import Matcher
from deepseek_gateway.guard.stream import Hit, TextFilter
from deepseek_gateway.relay.frames import DONE_DATA, data_of, is_error_event
from deepseek_gateway.relay.stages import EndAnswer

logger = logging.getLogger(__name__)

REASON = "content_filter"
"""The finish_reason, the ledger's end_reason and the error code of what a word list stopped."""

OnHit = Callable[[Hit, int, str], None]
"""Told of each hit: what, in which choice, in which field."""


@dataclass(frozen=True, slots=True)
class _Sidecar:
    """What an event said about its text, which is characters `start` to `end` of a field."""

    text: TextFilter
    start: int
    end: int
    values: Json


class _Choice:
    """One answer of a request: its fields' filters, and what waits for them."""

    def __init__(self) -> None:
        self.filters: dict[str, TextFilter] = {}
        self.active: str | None = None
        self.waiting: list[_Sidecar] = []
        self.is_finished = False

    def released(self) -> Json:
        """The sidecars whose text has gone out, put together."""
        out: Json = {}
        while self.waiting and self.waiting[0].text.sent >= self.waiting[0].end:
            sidecar = self.waiting.pop(0)
            if sidecar.text.masked_to <= sidecar.start:
                out = _merged(out, sidecar.values)
        return out


class WordStage:
    """The filter of one answer.

    Args:
        matcher: the rules for answers.
        on_hit: told of each hit as it is decided.
        fails_open: when the filter itself fails, text passes; else the answer ends.
    """

    def __init__(self, matcher: Matcher, on_hit: OnHit, *, fails_open: bool = False) -> None:
        self._matcher = matcher
        self._on_hit = on_hit
        self._fails_open = fails_open
        self._choices: dict[int, _Choice] = {}
        self._head: Json = {}
        self._is_chat = False

    def pass_on(self, frame: bytes) -> bytes:
        """Filter one event.

        Raises:
            EndAnswer: a blocked word came; the events up to it, and those that end each choice, are its last.
        """
        try:
            return self._pass_on(frame)
        except EndAnswer:
            raise
        except Exception as error:
            logger.exception("the word filter failed")
            if self._fails_open:
                return frame
            raise EndAnswer(self._endings(), REASON) from error

    def body(self, body: bytes) -> bytes:
        """Filter an answer in one piece.

        Raises:
            EndAnswer: blocked words were cut out of it.
        """
        try:
            answer = _parsed(body)
            changed, is_blocked = self._filter_body(answer)
        except Exception as error:
            logger.exception("the word filter failed")
            if self._fails_open:
                return body
            raise EndAnswer(_emptied(body), REASON) from error
        if is_blocked:
            raise EndAnswer(_encoded(answer), REASON)
        return _encoded(answer) if changed else body

    def _pass_on(self, frame: bytes) -> bytes:
        data = data_of(frame)
        if data is None:
            return self._rest() + frame if is_error_event(frame) else frame
        if data == DONE_DATA:
            return self._rest() + frame
        event = _parsed(data)
        if "choices" not in event and "text" not in event:
            return self._rest() + frame if "error" in event else frame
        out = self._filter_one(event, frame)
        return self._filter(event, frame) if out is None else out

    def _filter_one(self, event: Json, frame: bytes) -> bytes | None:
        """Filter an event that adds to one text and does nothing else, as most do; None for all others."""
        parts = choices_of(event)
        if len(parts) != 1:
            return None
        part = parts[0]
        holder, key = part, "text"
        if "delta" in part:
            holder, key = part["delta"], "content"
            if not isinstance(holder, dict) or len(cast("Json", holder)) != 1 or "text" in part or "message" in part:
                return None
        holder = cast("Json", holder)
        choice = self._choices.get(part.get("index", 0))
        text = holder.get(key)
        if choice is None or choice.active != key or choice.waiting or not isinstance(text, str):
            return None
        if part.get("finish_reason") is not None or any(part.get(name) is not None for name in SIDECARS):
            return None
        text_filter = choice.filters[key]
        out = text_filter.feed(text)
        if text_filter.num_told != len(text_filter.hits):
            self._tell(text_filter, index_of(part), key)
        self._head = event
        if out is text:
            return frame
        holder[key] = out
        if text_filter.is_blocked:
            self._block(event, Place(index_of(part), key, holder, key), [])
        return _frame(event) if out or event.get("usage") is not None else b""

    def _filter(self, event: Json, frame: bytes) -> bytes:
        self._head, self._is_chat = event, self._is_chat or b'"delta"' in frame
        before: list[bytes] = []
        places: dict[tuple[int, str], Place] = {}
        starts: dict[int, tuple[TextFilter, int]] = {}
        has_changed = False
        for place in answer_texts(event):
            choice = self._choice(place.choice)
            text_filter = self._filter_of(choice, place)
            if choice.active != place.field:
                has_changed |= self._flush(event, place.choice, places, before)
                choice.active = place.field
            starts.setdefault(place.choice, (text_filter, text_filter.received))
            text = place.text
            out = text_filter.feed(text)
            if place.is_whole:
                out += text_filter.finish()
            if out is not text and out != text:
                place.holder[place.key] = out
                has_changed = True
            places[place.choice, place.field] = place
            self._tell(text_filter, place.choice, place.field)
            if text_filter.is_blocked:
                self._block(event, place, before)
        for part in choices_of(event):
            has_changed |= self._close(event, part, starts, places, before)
        if not has_changed:
            return b"".join([*before, frame]) if before else frame
        return b"".join(before) + (b"" if _says_nothing(event) else _frame(event))

    def _close(
        self,
        event: Json,
        part: Json,
        starts: dict[int, tuple[TextFilter, int]],
        places: dict[tuple[int, str], Place],
        before: list[bytes],
    ) -> bool:
        """Bring a choice's sidecars in step with its text, and its text to an end if it ends; says if it changed."""
        index = index_of(part)
        choice = self._choice(index)
        has_changed = self._sidecars(part, choice, starts.get(index))
        if part.get("finish_reason") is not None:
            choice.is_finished = True
            has_changed |= self._flush(event, index, places, before)
        if choice.waiting and (released := choice.released()):
            part.update(_merged(released, {name: part[name] for name in SIDECARS if part.get(name) is not None}))
            has_changed = True
        return has_changed

    def _sidecars(self, part: Json, choice: _Choice, start: tuple[TextFilter, int] | None) -> bool:
        values = {name: part[name] for name in SIDECARS if part.get(name) is not None}
        if not values:
            return False
        if start is None and choice.active is not None:
            active = choice.filters[choice.active]
            start = active, active.received
        if self._has_words(values):
            for name in values:
                part[name] = None
            return True
        if start is None:
            return False
        text, at = start
        if not choice.waiting and text.sent >= text.received and text.masked_to <= at:
            return False
        for name in values:
            part[name] = None
        choice.waiting.append(_Sidecar(text, at, text.received, values))
        return True

    def _has_words(self, values: Json) -> bool:
        """Whether tokens that were not chosen, or their bytes, spell what may not be seen."""
        if not self._matcher.can_change:
            return False
        text = TextFilter(self._matcher)
        text.feed("\n".join(string for string in all_strings(values) if len(string) > 1))
        text.finish()
        return any(hit.rule.level in {Level.BLOCK, Level.MASK} for hit in text.hits)

    def _flush(self, event: Json, index: int, places: dict[tuple[int, str], Place], before: list[bytes]) -> bool:
        """Send what the choice's field holds back: in its place of this event, or in an event before it."""
        choice = self._choice(index)
        field = choice.active
        if field is None or not (text := choice.filters[field]).is_open:
            return False
        rest = text.finish()
        self._tell(text, index, field)
        place = places.get((index, field))
        if place is not None and rest:
            place.holder[place.key] += rest
        elif rest:
            before.append(_frame(self._event(index, field, rest, choice.released())))
        if text.is_blocked and place is not None:
            self._block(event, place, before)
        if text.is_blocked:
            raise EndAnswer(b"".join(before) + self._endings(), REASON)
        return place is not None and bool(rest)

    def _rest(self) -> bytes:
        """All that is held back: the answer ends here."""
        before: list[bytes] = []
        for index in self._choices:
            self._flush(self._head, index, {}, before)
        return b"".join(before)

    def _block(self, event: Json, at: Place, before: list[bytes]) -> None:
        """End the answer after the safe part of this event.

        Raises:
            EndAnswer: always.
        """
        is_later = False
        for place in list(answer_texts(event)):
            if is_later:
                place.holder[place.key] = ""
            is_later = is_later or (place.holder is at.holder and place.key == at.key)
        for part in choices_of(event):
            part["finish_reason"] = None
            for name in SIDECARS:
                part.pop(name, None)
        safe = b"" if _says_nothing(event) else _frame(event)
        raise EndAnswer(b"".join(before) + safe + self._endings(), REASON)

    def _endings(self) -> bytes:
        """What the other choices hold back, and an event for each that ends it."""
        out: list[bytes] = []
        for index, choice in (self._choices or {0: _Choice()}).items():
            if choice.is_finished:
                continue
            field = choice.active
            text = None if field is None else choice.filters[field]
            if text is not None and field is not None and (rest := text.finish()):
                out.append(_frame(self._event(index, field, rest, {})))
            end = self._event(index, None, "", {})
            (end["choices"][0] if "choices" in end else end)["finish_reason"] = REASON
            out.append(_frame(end))
        return b"".join(out)

    def _event(self, index: int, field: str | None, text: str, more: Json) -> Json:
        """An event of our own, in the form of the engine's."""
        head = {name: value for name, value in self._head.items() if name not in {"choices", "usage", *SIDECARS}}
        if "choices" not in self._head and self._head:
            return {**head, "text": text, "finish_reason": None, **more}
        content: Json = {"text": text}
        if self._is_chat:
            content = {"delta": {} if field is None else delta_for(field, text)}
        return {**head, "choices": [{"index": index, **content, "finish_reason": None, **more}]}

    def _filter_body(self, answer: Json) -> tuple[bool, bool]:
        changed: set[int] = set()
        blocked: set[int] = set()
        places = list(answer_texts(answer))
        for position, place in enumerate(places):
            if place.choice in blocked:
                place.holder[place.key] = ""
                continue
            choice = self._choice(place.choice)
            text_filter, text = self._filter_of(choice, place), place.text
            out = text_filter.feed(text)
            after = places[position + 1] if position + 1 < len(places) else None
            if after is None or (after.choice, after.field) != (place.choice, place.field):
                out += text_filter.finish()
            if out != text:
                place.holder[place.key] = out
                changed.add(place.choice)
            self._tell(text_filter, place.choice, place.field)
            if text_filter.is_blocked:
                blocked.add(place.choice)
        for part in choices_of(answer):
            changed.update(_close_body(part, index_of(part), changed | blocked, blocked, self._has_words))
        return bool(changed or blocked), bool(blocked)

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
        return choice

    def _filter_of(self, choice: _Choice, place: Place) -> TextFilter:
        text = choice.filters.get(place.field)
        if text is None:
            text = choice.filters[place.field] = TextFilter(self._matcher, is_json=place.is_json)
        return text

    def _tell(self, text: TextFilter, choice: int, field: str) -> None:
        for hit in text.hits[text.num_told :]:
            self._on_hit(hit, choice, field)
        text.num_told = len(text.hits)


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


def _merged(first: Any, second: Any) -> Any:
    """Two sidecars of texts that follow each other: lists are joined, objects key by key."""
    if isinstance(first, dict) and isinstance(second, dict):
        one, two = cast("Json", first), cast("Json", second)
        return {**one, **{name: _merged(one[name], two[name]) if name in one else two[name] for name in two}}
    if isinstance(first, list) and isinstance(second, list):
        return [*cast("list[Any]", first), *cast("list[Any]", second)]
    return cast("Any", first if second is None else second)


def _says_nothing(event: Json) -> bool:
    """Whether an event has lost all that it carried."""
    if event.get("usage") is not None:
        return False
    for part in choices_of(event):
        if part.get("finish_reason") is not None or any(part.get(name) is not None for name in SIDECARS):
            return False
        delta: Json = part.get("delta") or {}
        if part.get("text") or any(value for name, value in delta.items() if not _is_empty_call(name, value)):
            return False
    return bool(choices_of(event))


def _is_empty_call(name: str, value: Any) -> bool:
    """Whether tool calls in a delta add nothing: no name, no arguments, no id."""
    if name != "tool_calls" or not isinstance(value, list):
        return False
    calls = [cast("Json", call) for call in cast("list[Any]", value) if isinstance(call, dict)]
    functions = [cast("Json", call.get("function") or {}) for call in calls]
    return not any(call.get("id") for call in calls) and not any(any(function.values()) for function in functions)


def _parsed(data: bytes) -> Json:
    """An event's JSON.

    Raises:
        ValueError: it is not a JSON object.
    """
    try:
        value = orjson.loads(data)
    except ValueError:
        value = json.loads(data)  # takes half a surrogate pair, which some engines send
    if not isinstance(value, dict):
        raise ValueError("an event that is no JSON object")  # noqa: TRY004  a fault of the text, not of a type
    return cast("Json", value)


def _encoded(event: Json) -> bytes:
    try:
        return orjson.dumps(event)
    except TypeError:  # half a surrogate pair
        return json.dumps(event, separators=(",", ":")).encode()


def _frame(event: Json) -> bytes:
    return b"data: " + _encoded(event) + b"\n\n"


def _emptied(body: bytes) -> bytes:
    """An answer without its texts, when the filter could not look at them; nothing at all if it cannot be read."""
    try:
        answer = _parsed(body)
        for place in list(answer_texts(answer)):
            place.holder[place.key] = ""
        for part in choices_of(answer):
            part["finish_reason"] = REASON
            for name in SIDECARS:
                part.pop(name, None)
    except ValueError:
        return b'{"choices":[]}'
    return _encoded(answer)
