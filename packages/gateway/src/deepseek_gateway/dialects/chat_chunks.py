"""The engine's chat events and bodies, as far as a translation reads them."""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.relay.frames import DONE_DATA, data_of, is_error_event
from deepseek_gateway.relay.usage_tap import counts_of

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call; `id` and `name` come with its first."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """What one event says. `stop` is the stop string that ended the answer, where an engine tells."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[CallDelta, ...] = ()
    finish_reason: str | None = None
    stop: str | None = None


@dataclass(slots=True)
class ChatReader:
    """Reads one answer's events, and remembers what stands in each of them."""

    id: str = ""
    model: str = ""
    created: int = 0
    counts: TokenCounts = field(default_factory=TokenCounts)
    reasoning_tokens: int = 0
    finish_reason: str | None = None
    stop: str | None = None

    def read(self, chunk: Fields) -> ChatDelta:
        """One chunk, or a whole answer, whose message reads as one big delta."""
        self.id = str(chunk.get("id") or self.id)
        self.model = str(chunk.get("model") or self.model)
        created = chunk.get("created")
        self.created = created if isinstance(created, int) else self.created
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._note_usage(cast("Fields", usage))
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return ChatDelta()
        choice = cast("Fields", choices[0])
        delta = cast("Fields", choice.get("delta") or choice.get("message") or {})
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        stop = choice.get("stop_reason") or choice.get("matched_stop")  # vLLM's name, SGLang's
        self.stop = stop if isinstance(stop, str) else self.stop
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        calls = tuple(_call(call, at) for at, call in enumerate(delta.get("tool_calls") or ()))
        return ChatDelta(str(reasoning), str(delta.get("content") or ""), calls, self.finish_reason, self.stop)

    def _note_usage(self, usage: Fields) -> None:
        self.counts = counts_of(usage)
        details = usage.get("completion_tokens_details")
        tokens: Any = cast("Fields", details).get("reasoning_tokens") if isinstance(details, dict) else None
        self.reasoning_tokens = tokens if isinstance(tokens, int) else self.reasoning_tokens


def chunk_of(frame: bytes) -> Fields | None:
    """The chunk in an event; None for comments, named events, [DONE] and what is no JSON object."""
    data = data_of(frame)
    if data is None or data == DONE_DATA:
        return None
    return json_object(data)


def is_done(frame: bytes) -> bool:
    """Whether an event is [DONE]."""
    return data_of(frame) == DONE_DATA


def error_data_of(frame: bytes) -> bytes | None:
    """The error body in an event that carries one, named or not."""
    if is_error_event(frame):
        lines = [line[5:].strip() for line in frame.split(b"\n") if line.startswith(b"data:")]
        return b"\n".join(lines)
    data = data_of(frame)
    if data is None or b'"error"' not in data:
        return None
    chunk = json_object(data)
    return data if chunk is not None and "choices" not in chunk and isinstance(chunk.get("error"), dict) else None


def json_object(data: bytes | str) -> Fields | None:
    """A JSON object, or None for anything else."""
    try:
        value = orjson.loads(data)
    except ValueError:
        value = _without_surrogates(data)
    return cast("Fields", value) if isinstance(value, dict) else None


def _without_surrogates(data: bytes | str) -> Any:
    """JSON with an escaped half of a character, which orjson refuses, with a question mark there; None for no JSON."""
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return orjson.loads(text.encode(errors="replace"))


def new_id(prefix: str) -> str:
    """An id in the style of other makers' APIs."""
    return f"{prefix}_{secrets.token_hex(12)}"


def _call(value: Any, at: int) -> CallDelta:
    call = cast("Fields", value)
    function = cast("Fields", call.get("function") or {})
    index = call.get("index")
    return CallDelta(
        index if isinstance(index, int) else at, call.get("id"), function.get("name"), function.get("arguments") or ""
    )
