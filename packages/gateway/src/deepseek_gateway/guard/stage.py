"""The word filter as a stage of the relay: it works on the engine's own events, before any translation.

An event in which nothing changes passes as the bytes that came. What is held back goes out with the next event of its
choice, or in an event of its own before the answer's end. What tells the text again, token by token (`SIDECARS`), waits
with it, and is dropped where words were masked.
"""

import logging
from typing import cast

from deepseek_gateway.guard.bodies import emptied, filter_body
from deepseek_gateway.guard.choices import Choice, Choices, OnHit, Sidecar
from deepseek_gateway.guard.events import REASON, encoded, framed, merged, parsed, says_nothing
from deepseek_gateway.guard.fields import SIDECARS, Json, Place, answer_texts, choices_of, delta_for, index_of
from deepseek_gateway.guard.matcher import Matcher
from deepseek_gateway.guard.stream import TextFilter
from deepseek_gateway.relay.frames import DONE_DATA, data_of, is_error_event
from deepseek_gateway.relay.stages import EndAnswer

logger = logging.getLogger(__name__)


class WordStage:
    """The filter of one answer.

    Args:
        matcher: the rules for answers.
        on_hit: told of each hit as it is decided.
        fails_open: when the filter itself fails, text passes; else the answer ends.
    """

    def __init__(self, matcher: Matcher, on_hit: OnHit, *, fails_open: bool = False) -> None:
        self._fails_open = fails_open
        self._choices = Choices(matcher, on_hit)
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
            answer = parsed(body)
            changed, is_blocked = filter_body(self._choices, answer)
        except Exception as error:
            logger.exception("the word filter failed")
            if self._fails_open:
                return body
            raise EndAnswer(emptied(body), REASON) from error
        if is_blocked:
            raise EndAnswer(encoded(answer), REASON)
        return encoded(answer) if changed else body

    def _pass_on(self, frame: bytes) -> bytes:
        data = data_of(frame)
        if data is None:
            return self._rest() + frame if is_error_event(frame) else frame
        if data == DONE_DATA:
            return self._rest() + frame
        event = parsed(data)
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
        choice = self._choices.by_index.get(part.get("index", 0))
        text = holder.get(key)
        if choice is None or choice.active != key or choice.waiting or not isinstance(text, str):
            return None
        if part.get("finish_reason") is not None or any(part.get(name) is not None for name in SIDECARS):
            return None
        text_filter = choice.filters[key]
        out = text_filter.feed(text)
        if text_filter.num_told != len(text_filter.hits):
            self._choices.tell(text_filter, index_of(part), key)
        self._head = event
        if out is text:
            return frame
        holder[key] = out
        if text_filter.is_blocked:
            self._block(event, Place(index_of(part), key, holder, key), [])
        return framed(event) if out or event.get("usage") is not None else b""

    def _filter(self, event: Json, frame: bytes) -> bytes:
        self._head, self._is_chat = event, self._is_chat or b'"delta"' in frame
        before: list[bytes] = []
        places: dict[tuple[int, str], Place] = {}
        starts: dict[int, tuple[TextFilter, int]] = {}
        has_changed = False
        for place in answer_texts(event):
            choice = self._choices.of(place.choice)
            text_filter = self._choices.filter_of(choice, place)
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
            self._choices.tell(text_filter, place.choice, place.field)
            if text_filter.is_blocked:
                self._block(event, place, before)
        for part in choices_of(event):
            has_changed |= self._close(event, part, starts, places, before)
        if not has_changed:
            return b"".join([*before, frame]) if before else frame
        return b"".join(before) + (b"" if says_nothing(event) else framed(event))

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
        choice = self._choices.of(index)
        has_changed = self._sidecars(part, choice, starts.get(index))
        if part.get("finish_reason") is not None:
            choice.is_finished = True
            has_changed |= self._flush(event, index, places, before)
        if choice.waiting and (released := choice.released()):
            part.update(merged(released, {name: part[name] for name in SIDECARS if part.get(name) is not None}))
            has_changed = True
        return has_changed

    def _sidecars(self, part: Json, choice: Choice, start: tuple[TextFilter, int] | None) -> bool:
        values = {name: part[name] for name in SIDECARS if part.get(name) is not None}
        if not values:
            return False
        if start is None and choice.active is not None:
            active = choice.filters[choice.active]
            start = active, active.received
        if self._choices.has_words(values):
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
        choice.waiting.append(Sidecar(text, at, text.received, values))
        return True

    def _flush(self, event: Json, index: int, places: dict[tuple[int, str], Place], before: list[bytes]) -> bool:
        """Send what the choice's field holds back: in its place of this event, or in an event before it."""
        choice = self._choices.of(index)
        field = choice.active
        if field is None or not (text := choice.filters[field]).is_open:
            return False
        rest = text.finish()
        self._choices.tell(text, index, field)
        place = places.get((index, field))
        if place is not None and rest:
            place.holder[place.key] += rest
        elif rest:
            before.append(framed(self._event(index, field, rest, choice.released())))
        if text.is_blocked and place is not None:
            self._block(event, place, before)
        if text.is_blocked:
            raise EndAnswer(b"".join(before) + self._endings(), REASON)
        return place is not None and bool(rest)

    def _rest(self) -> bytes:
        """All that is held back: the answer ends here."""
        before: list[bytes] = []
        for index in self._choices.by_index:
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
        safe = b"" if says_nothing(event) else framed(event)
        raise EndAnswer(b"".join(before) + safe + self._endings(), REASON)

    def _endings(self) -> bytes:
        """What the other choices hold back, and an event for each that ends it."""
        out: list[bytes] = []
        for index, choice in (self._choices.by_index or {0: Choice()}).items():
            if choice.is_finished:
                continue
            field = choice.active
            text = None if field is None else choice.filters[field]
            if text is not None and field is not None and (rest := text.finish()):
                out.append(framed(self._event(index, field, rest, {})))
            end = self._event(index, None, "", {})
            (end["choices"][0] if "choices" in end else end)["finish_reason"] = REASON
            out.append(framed(end))
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
