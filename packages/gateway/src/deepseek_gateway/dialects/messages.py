"""Anthropic's POST /v1/messages: its content blocks and events, made of the engine's chat events."""

from typing import Any, Literal

import orjson

from deepseek_gateway.dialects.anthropic_errors import ANTHROPIC_ERRORS, PING
from deepseek_gateway.dialects.calls import CallDelta
from deepseek_gateway.dialects.chat_chunks import (
    ChatDelta,
    ChatReader,
    chunk_of,
    error_data_of,
    is_done,
    new_id,
)
from deepseek_gateway.dialects.messages_request import chat_fields, hides_thinking
from deepseek_gateway.dialects.translation import Translated
from deepseek_gateway.edge.error_shape import ErrorShape
from deepseek_gateway.foreign import Fields, json_object
from deepseek_gateway.relay.request import Dialect, read_request
from deepseek_gateway.relay.usage_tap import UsageWish

Kind = Literal["thinking", "text", "tool_use"]

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "abort": "max_tokens",  # the engine's deadline
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class MessagesTranslation:
    """The dialect."""

    path = "messages"
    errors: ErrorShape = ANTHROPIC_ERRORS

    def translate(self, fields: Fields) -> Translated:
        """A request in the engine's terms.

        Raises:
            ApiError: 400, it names the field at fault.
        """
        # Usage comes with every event, so that message_start can have the prompt's.
        wish = UsageWish(trailing=True, continuous=True)
        chat = chat_fields(fields)
        is_continued = chat["messages"][-1].get("prefix") is True
        stage = MessagesStage(shows_thinking=not hides_thinking(fields))
        request = read_request(Dialect.CHAT, chat, wish)
        return Translated(request, (stage,), ANTHROPIC_ERRORS, "beta" if is_continued else "v1")


class MessagesStage:
    """One answer.

    Blocks come one after another, as the engine's events do; a block's start is sent with its first text.
    """

    def __init__(self, *, shows_thinking: bool = True) -> None:
        self._shows_thinking = shows_thinking
        self._reader = ChatReader()
        self._out: list[bytes] = []
        self._has_started = False
        self._open: Kind | None = None
        self._block = -1
        self._calls: dict[int, int] = {}

    def pass_on(self, frame: bytes) -> bytes:
        """Anthropic's events for one of the engine's."""
        chunk = chunk_of(frame)
        if chunk is None or "choices" not in chunk:
            return self._other(frame)
        reader, delta = self._reader, self._reader.read(chunk)
        if reader.counts.prompt or delta != ChatDelta():  # an opening event that says nothing yet waits
            self._start()
        if delta.reasoning:
            self._text("thinking", delta.reasoning)
        if delta.text:
            self._text("text", delta.text)
        for call in delta.calls:
            self._call(call)
        return self._take()

    def body(self, body: bytes) -> bytes:
        """A whole message."""
        answer = json_object(body)
        if answer is None:
            return body
        reader = self._reader
        delta = reader.read(answer)
        content: list[Fields] = []
        if delta.reasoning:
            thinking = delta.reasoning if self._shows_thinking else ""
            content.append({"type": "thinking", "thinking": thinking, "signature": reader.id})
        if delta.text:
            content.append({"type": "text", "text": delta.text})
        content.extend(
            {"type": "tool_use", "id": _id(call), "name": call.name or "", "input": _input(call.arguments)}
            for call in (*delta.calls, *reader.rest())
        )
        return orjson.dumps({**self._message(), "content": content, **self._stop(), "usage": self._usage()})

    def _other(self, frame: bytes) -> bytes:
        if is_done(frame):
            return self._finish()
        error = error_data_of(frame)
        if error is not None:
            return ANTHROPIC_ERRORS.event(ANTHROPIC_ERRORS.relayed(500, error))
        return PING if frame.startswith(b":") else b""

    def _start(self) -> None:
        if self._has_started:
            return
        self._has_started = True
        usage = {**self._usage(), "output_tokens": 0}
        start: Fields = {**self._message(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        self._emit("message_start", message=start)

    def _text(self, kind: Literal["thinking", "text"], text: str) -> None:
        if self._open != kind:
            self._close()
            empty: Fields = {"type": kind, kind: ""}
            if kind == "thinking":
                empty["signature"] = ""
            self._begin(kind, empty)
        if kind == "text" or self._shows_thinking:
            self._delta(self._block, {"type": f"{kind}_delta", kind: text})

    def _call(self, call: CallDelta) -> None:
        if call.index not in self._calls:
            self._close()
            self._calls[call.index] = self._block + 1
            self._begin("tool_use", {"type": "tool_use", "id": _id(call), "name": call.name or "", "input": {}})
        if call.arguments:
            self._delta(self._calls[call.index], {"type": "input_json_delta", "partial_json": call.arguments})

    def _begin(self, kind: Kind, block: Fields) -> None:
        self._open, self._block = kind, self._block + 1
        self._emit("content_block_start", index=self._block, content_block=block)

    def _close(self) -> None:
        if self._open is None:
            return
        if self._open == "thinking":
            self._delta(self._block, {"type": "signature_delta", "signature": self._reader.id})
        self._emit("content_block_stop", index=self._block)
        self._open = None

    def _finish(self) -> bytes:
        self._start()
        for call in self._reader.rest():
            self._call(call)
        self._close()
        self._emit("message_delta", delta=self._stop(), usage=self._usage())
        self._emit("message_stop")
        return self._take()

    def _stop(self) -> Fields:
        reader = self._reader
        if reader.stop is not None and reader.finish_reason == "stop":
            return {"stop_reason": "stop_sequence", "stop_sequence": reader.stop}
        return {"stop_reason": STOP_REASONS.get(reader.finish_reason or "", "end_turn"), "stop_sequence": None}

    def _usage(self) -> Fields:
        """Anthropic counts what the cache had apart from the other input."""
        counts = self._reader.counts
        return {
            "input_tokens": max(0, counts.prompt - counts.cached),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts.cached,
            "output_tokens": counts.completion,
            "output_tokens_details": {"thinking_tokens": self._reader.reasoning_tokens},
        }

    def _message(self) -> Fields:
        reader = self._reader
        return {"id": f"msg_{reader.id}", "type": "message", "role": "assistant", "model": reader.model}

    def _delta(self, index: int, delta: Fields) -> None:
        self._emit("content_block_delta", index=index, delta=delta)

    def _emit(self, kind: str, **fields: Any) -> None:
        data = orjson.dumps({"type": kind, **fields})
        self._out.append(b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n")

    def _take(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out


def _id(call: CallDelta) -> str:
    return call.id or new_id("toolu")


def _input(arguments: str) -> Fields:
    """A call's arguments; text that is no JSON object is kept where the model's user can see it."""
    if not arguments:
        return {}
    value = json_object(arguments)
    return {"INVALID_JSON": arguments} if value is None else value
