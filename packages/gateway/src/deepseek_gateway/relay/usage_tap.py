"""Reads usage out of stream events as they pass, and cuts out what the caller did not ask for.

Our engine ends each chunk with `,"usage":{…}}`, so the cut is a slice of bytes. Other servers may put it elsewhere, or
write spaces between: then the chunk is parsed and encoded again.
"""

from dataclasses import dataclass
from typing import Any, cast

import orjson

from deepseek_client.sse import DONE, encode_event
from deepseek_gateway.foreign import compacted, error_in, is_spaced, json_object
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.relay.frames import DONE_DATA, data_of, is_error_event

_MARK = b',"usage":'
_MARK_BYTES = len(_MARK)
_NULL = b',"usage":null}'
_EMPTY_CHOICES = b'"choices":[]'
_FINISH = b'"finish_reason":"'
_EMPTY = (b'"content":""', b'"delta":{}', b'"content":null', b'"text":""')
_SAID = (b'"tool_calls":[{', b'"reasoning_content":"', b'"reasoning":"')
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
    """One stream's usage.

    Args:
        wish: what the caller asked for.
        prompt_estimate: tokens of the prompt, for servers that never tell.
    """

    def __init__(self, wish: UsageWish, prompt_estimate: int = 0) -> None:
        self._wish = wish
        self._prompt_estimate = prompt_estimate
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

    def estimate(self, ahead: int = 0) -> dict[str, Any] | None:
        """Usage of a server that tells none, now or never: a piece is a token. None before the first."""
        completion = self.content_events + ahead
        if not completion:
            return None
        prompt = self._prompt_estimate
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def pass_on(self, frame: bytes) -> bytes:
        """What of an event goes to the caller: all, a part, nothing; before [DONE] the trailer that is missing."""
        data = data_of(frame)
        if data is None:
            self.is_failed = self.is_failed or is_error_event(frame)
            return frame
        if data == DONE_DATA:
            self.is_done = True
            return self._missing_trailer() + frame
        if is_spaced(data):
            data = compacted(data)
            frame = b"data: " + data + b"\n\n"
        if b'"error"' in data and (error := _error_event(data)) is not None:
            self.is_failed = True
            return error
        return self._take(frame, data)

    def look(self, frame: bytes) -> Piece | None:
        """What `take` would make of an event; None for all that only `pass_on` can judge: errors, ends, trailers."""
        if not frame.startswith(b"data: {") or frame.count(b"\n") != 2:
            return None
        if _FINISH in frame or _EMPTY_CHOICES in frame or b'"error"' in frame:
            return None
        data = frame[6:-2]
        if is_spaced(data):
            return None
        without, usage = split_usage(data)
        is_cut = without is not data and not self._wish.continuous
        return (b"data: %b\n\n" % without if is_cut else frame), without, usage

    def take(self, piece: Piece) -> None:
        """Note a plain piece of the answer that goes to the caller."""
        _, self._last_chunk, usage = piece
        if usage is not None or not says_nothing(self._last_chunk):
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
            self._last_chunk = without
            if usage is not None or not says_nothing(without):
                self.content_events += 1
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
        """The last usage as a chunk of its own, where a server sent it only within others; an estimate if never."""
        if not self._wish.trailing or self._wish.in_finish or self._sent_trailing:
            return b""
        usage, chunk = self._usage or self.estimate(), json_object(self._last_chunk)
        if usage is None or chunk is None:
            return b""
        return b"data: " + orjson.dumps({**chunk, "choices": [], "usage": usage}) + b"\n\n"


def says_nothing(data: bytes) -> bool:
    """Whether a chunk only tells of the role, or of the end: no token was made for it."""
    if not any(empty in data for empty in _EMPTY):
        return False
    return not any(said in data for said in _SAID)


def split_usage(data: bytes) -> tuple[bytes, dict[str, Any] | None]:
    """A chunk without its `usage`, and that usage; the same object when there is none to cut."""
    at = data.rfind(_MARK)
    if at > 0 and data.startswith(b"{") and data.endswith(b"}"):
        # A quote inside a JSON string is escaped, so the mark is a key; if all that follows is one object and the
        # chunk's own brace, it is the chunk's last key.
        usage = json_object(data[at + _MARK_BYTES : -1])
        if usage is not None:
            return data[:at] + b"}", usage
    if b'"usage"' not in data:
        return data, None
    if data.endswith(_NULL):
        return data[: -len(_NULL)] + b"}", None
    chunk = json_object(data)
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
    answer = json_object(body)
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


def _error_event(data: bytes) -> bytes | None:
    """A chunk that tells of an error, as the event that our engine would send; None for a piece of an answer."""
    chunk = json_object(data)
    error = None if chunk is None else error_in(chunk, 500)
    return None if error is None else encode_event(error.model_dump_json(), event="error")
