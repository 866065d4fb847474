"""The engine's chat events and bodies, as far as a translation reads them."""

import secrets
from dataclasses import dataclass, field
from typing import Any, cast

from deepseek_gateway.dialects.calls import CallDelta, CallReader
from deepseek_gateway.foreign import Fields, json_object
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.relay.frames import DONE_DATA, data_of, is_error_event
from deepseek_gateway.relay.usage_tap import counts_of


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
    stop: str | None = None
    _reason: str | None = None
    _calls: CallReader = field(default_factory=CallReader)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended. Servers that were told which tool to call say `stop`, as OpenAI's do."""
        return "tool_calls" if self._reason == "stop" and self._calls.num_calls else self._reason

    def rest(self) -> tuple[CallDelta, ...]:
        """At the end: pieces of tool calls that waited for others."""
        return self._calls.rest()

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
        self._reason = choice.get("finish_reason") or self._reason
        stop = choice.get("stop_reason") or choice.get("matched_stop")  # vLLM's name, SGLang's
        self.stop = stop if isinstance(stop, str) else self.stop
        text, thought = _parts_of(delta.get("content") or delta.get("refusal"))
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or thought
        calls = self._calls.read(delta.get("tool_calls"))
        return ChatDelta(str(reasoning), text, calls, self.finish_reason, self.stop)

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
    """The error body in an event that carries one."""
    if not is_error_event(frame):
        return None
    lines = [line[5:].strip() for line in frame.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def new_id(prefix: str) -> str:
    """An id in the style of other makers' APIs."""
    return f"{prefix}_{secrets.token_hex(12)}"


def _parts_of(content: Any) -> tuple[str, str]:
    """Text and reasoning of a content that is a text, or Mistral's list of parts."""
    if not isinstance(content, list):
        return str(content or ""), ""
    text, thought = "", ""
    for item in cast("list[object]", content):
        part = cast("Fields", item) if isinstance(item, dict) else {}
        if part.get("type") == "thinking":
            thought += _parts_of(part.get("thinking"))[0]
        else:
            text += str(part.get("text") or "")
    return text, thought
