"""Reads usage out of stream events as they pass, and cuts out what the caller did not ask for.

Our engine ends each chunk with `,"usage":{…}}`, so the cut is a slice of bytes. Other servers may put it elsewhere:
then the chunk is parsed and encoded again.
"""

from dataclasses import dataclass
from typing import Any, cast

import orjson

from deepseek_client.sse import DONE
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.relay.frames import DONE_DATA, data_of, is_error_event

_MARK = b',"usage":'
_MARK_BYTES = len(_MARK)
_NULL = b',"usage":null}'
_EMPTY_CHOICES = b'"choices":[]'
_FINISH = b'"finish_reason":"'
MAX_REASON = 32


Piece = tuple[bytes, bytes, dict[str, Any] | None]
"""A plain piece of an answer: the event for the caller, its data without `usage`, and that usage."""


@dataclass(frozen=True, slots=True)
class UsageWish:
    """Which usage the caller asked for: in the last chunk, or in every one.

    `in_finish` is the generate dialect: usage rides on the event that carries the finish_reason, asked for or not.
    """

    trailing: bool = False
    continuous: bool = False
    in_finish: bool = False


class UsageTap:
    """One stream's usage."""

    def __init__(self, wish: UsageWish) -> None:
        self._wish = wish
        self._usage: dict[str, Any] | None = None
        self._last_chunk = b""
        self._sent_trailing = False
        self._counts: TokenCounts | None = None
        self.finish_reason: str | None = None
        self.content_events = 0
        self.is_done = False
        self.is_failed = False

    @property
    def counts(self) -> TokenCounts | None:
        """The last usage; None before the first."""
        if self._counts is None and self._usage is not None:
            self._counts = counts_of(self._usage)
        return self._counts

    @property
    def spent(self) -> tuple[int, int] | None:
        """Tokens of prompt and answer by the last usage; None before the first."""
        return None if self._usage is None else spent_of(self._usage)

    def pass_on(self, frame: bytes) -> bytes:
        """What of an event goes to the caller: all, a part, nothing; before [DONE] the trailer that is missing."""
        data = data_of(frame)
        if data is None:
            self.is_failed = self.is_failed or is_error_event(frame)
            return frame
        if data == DONE_DATA:
            self.is_done = True
            return self._missing_trailer() + frame
        if b'"error"' in data and _is_error(data):
            self.is_failed = True
            return frame
        return self._take(frame, data)

    def look(self, frame: bytes) -> Piece | None:
        """What `take` would make of an event; None for all that only `pass_on` can judge: errors, ends, trailers."""
        if not frame.startswith(b"data: {") or frame.count(b"\n") != 2:
            return None
        if _FINISH in frame or _EMPTY_CHOICES in frame or b'"error"' in frame:
            return None
        data = frame[6:-2]
        without, usage = split_usage(data)
        is_cut = without is not data and not self._wish.continuous
        return (b"data: %b\n\n" % without if is_cut else frame), without, usage

    def take(self, piece: Piece) -> None:
        """Note a plain piece of the answer that goes to the caller."""
        _, self._last_chunk, usage = piece
        self.content_events += 1
        if usage is not None:
            self._usage, self._counts = usage, None

    def closing(self, last: bytes) -> bytes:
        """The end of a stream whose last events are given instead of the engine's: with usage as wished, and [DONE]."""
        head, _, final = last.rstrip(b"\n").rpartition(b"\n\n")
        data = final.removeprefix(b"data: ")
        if self._wish.in_finish and self._usage is not None and data.endswith(b"}"):
            head = head and head + b"\n\n"
            last = head + b"data: " + data[:-1] + b',"usage":' + orjson.dumps(self._usage) + b"}\n\n"
        self._sent_trailing = False  # one that came after the end went nowhere
        return last + self._missing_trailer() + DONE

    def _take(self, frame: bytes, data: bytes) -> bytes:
        """What of a piece of the answer goes to the caller."""
        without, usage = split_usage(data)
        is_finish = self._note_finish(data)
        if usage is not None:
            self._usage, self._counts = usage, None
        is_trailer = _EMPTY_CHOICES in data
        if not is_trailer:
            self.content_events += 1
            self._last_chunk = without
        if without is data or self._wish.continuous or (self._wish.in_finish and is_finish):
            self._sent_trailing = self._sent_trailing or (is_trailer and usage is not None)
            return frame
        if is_trailer and usage is not None:
            if not self._wish.trailing:
                return b""
            self._sent_trailing = True
            return frame
        return b"data: " + without + b"\n\n"

    def _note_finish(self, data: bytes) -> bool:
        at = data.find(_FINISH)
        if at < 0:
            return False
        start = at + len(_FINISH)
        self.finish_reason = _plain(data[start : start + MAX_REASON].partition(b'"')[0].decode("ascii", "replace"))
        return True

    def _missing_trailer(self) -> bytes:
        """The last usage as a chunk of its own, where a server sent it only within others."""
        if not self._wish.trailing or self._wish.in_finish or self._sent_trailing or self._usage is None:
            return b""
        try:
            chunk = cast("dict[str, Any]", orjson.loads(self._last_chunk))
        except ValueError:
            return b""
        return b"data: " + orjson.dumps({**chunk, "choices": [], "usage": self._usage}) + b"\n\n"


def split_usage(data: bytes) -> tuple[bytes, dict[str, Any] | None]:
    """A chunk without its `usage`, and that usage; the same object when there is none to cut."""
    at = data.rfind(_MARK)
    if at > 0 and data.startswith(b"{") and data.endswith(b"}"):
        # A quote inside a JSON string is escaped, so the mark is a key; if all that follows is one object and the
        # chunk's own brace, it is the chunk's last key.
        usage = _object(data[at + _MARK_BYTES : -1])
        if usage is not None:
            return data[:at] + b"}", usage
    if b'"usage"' not in data:
        return data, None
    if data.endswith(_NULL):
        return data[: -len(_NULL)] + b"}", None
    chunk = _object(data)
    if chunk is None or "usage" not in chunk:
        return data, None
    usage = chunk.pop("usage")
    return orjson.dumps(chunk), cast("dict[str, Any]", usage) if isinstance(usage, dict) else None


def counts_of(usage: dict[str, Any]) -> TokenCounts:
    """Token counts in any of the known spellings; what is missing or absurd counts as 0."""
    details = usage.get("prompt_tokens_details")
    cached = usage.get("prompt_cache_hit_tokens")
    if cached is None and isinstance(details, dict):
        cached = cast("dict[str, Any]", details).get("cached_tokens")
    reasoning = usage.get("reasoning_tokens")
    thought = usage.get("completion_tokens_details")
    if isinstance(thought, dict):
        reasoning = cast("dict[str, Any]", thought).get("reasoning_tokens")
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    return TokenCounts(prompt, completion, _count(cached), _count(reasoning))


def spent_of(usage: dict[str, Any]) -> tuple[int, int]:
    """Tokens of prompt and answer: all that most events are asked for."""
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if (
        type(prompt) is int
        and type(completion) is int
        and prompt >= 0
        and completion >= 0
        and prompt + completion < 2**40
    ):
        return prompt, completion
    return _count(prompt), _count(completion)


def usage_of_body(body: bytes) -> tuple[TokenCounts | None, str | None]:
    """Counts and finish_reason of an answer that is not streamed; None where it does not say."""
    answer = _object(body)
    if answer is None:
        return None, None
    usage = answer.get("usage")
    choices = answer.get("choices")
    first: Any = cast("list[Any]", choices)[0] if isinstance(choices, list) and choices else answer
    reason: Any = cast("dict[str, Any]", first).get("finish_reason") if isinstance(first, dict) else None
    counts = counts_of(cast("dict[str, Any]", usage)) if isinstance(usage, dict) else None
    return counts, _plain(reason) if isinstance(reason, str) else None


def _plain(reason: str) -> str:
    """A reason as tables take it."""
    return "".join([letter if letter.isprintable() else "?" for letter in reason[:MAX_REASON]])


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**40 else 0


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] | list[Any] | str | float | None = orjson.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_error(data: bytes) -> bool:
    value = _object(data)
    return value is not None and isinstance(value.get("error"), dict) and "choices" not in value
