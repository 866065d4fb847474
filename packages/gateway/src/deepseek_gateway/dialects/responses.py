"""OpenAI's POST /v1/responses, stateless: its items and events, made of the engine's chat events."""

import time
from dataclasses import dataclass, field
from typing import Any

import orjson

from deepseek_client.sse import KEEP_ALIVE, encode_event
from deepseek_gateway.dialects.calls import CallDelta
from deepseek_gateway.dialects.carried_reasoning import carried, is_wanted
from deepseek_gateway.dialects.chat_chunks import (
    ChatReader,
    chunk_of,
    error_data_of,
    is_done,
    new_id,
)
from deepseek_gateway.dialects.responses_request import chat_fields
from deepseek_gateway.dialects.translation import Translated
from deepseek_gateway.edge.error_shape import OPENAI_ERRORS, ErrorShape
from deepseek_gateway.errors import ApiError
from deepseek_gateway.foreign import Fields, json_object
from deepseek_gateway.relay.request import Dialect, read_request
from deepseek_gateway.relay.usage_tap import UsageWish

_ECHOED: Fields = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True, "reasoning": None,
    "safety_identifier": None, "temperature": None, "text": {"format": {"type": "text"}}, "tool_choice": "auto",
    "tools": [], "top_p": None, "user": None,
}  # fmt: skip
"""Fields of the request that stand in its answer too, and what stands there when they were not given."""

_INCOMPLETE = {"length": "max_output_tokens", "abort": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesTranslation:
    """The dialect."""

    path = "responses"
    errors: ErrorShape = OPENAI_ERRORS

    def translate(self, fields: Fields) -> Translated:
        """A request in the engine's terms.

        Raises:
            ApiError: 400, it names the field at fault.
        """
        request = read_request(Dialect.CHAT, chat_fields(fields), UsageWish(trailing=True, continuous=True))
        stage = ResponsesStage(fields)
        return Translated(request, (stage,), ResponsesErrors(stage))


@dataclass(slots=True)
class Item:
    """One item of the output while it grows. `kind` is `reasoning`, `message` or `function_call`.

    `is_carried`: a client wants reasoning in a form to bring back.
    """

    kind: str
    id: str
    index: int
    call: CallDelta | None = None
    is_carried: bool = False
    parts: list[str] = field(default_factory=list[str])

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.parts)

    def part(self, text: str) -> Fields:
        """Its only content part."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}

    def to_json(self, status: str) -> Fields:
        """The item, with what it holds so far; one in progress is empty."""
        head: Fields = {"id": self.id, "type": self.kind, "status": status}
        if self.call is not None:
            return {**head, "call_id": self.call.id, "name": self.call.name or "", "arguments": self.text}
        content = [] if status == "in_progress" else [self.part(self.text)]
        if self.kind == "reasoning":
            carrying = {"encrypted_content": carried(self.text)} if self.is_carried and content else {}
            return {**head, "summary": [], "content": content, **carrying}
        return {**head, "role": "assistant", "content": content}


class ResponsesStage:
    """One answer. Every event has the stream's next number, one that tells of a failure too."""

    def __init__(self, asked: Fields) -> None:
        self._asked = asked
        self._id = new_id("resp")
        self._reader = ChatReader()
        self._created = int(time.time())
        self._out: list[bytes] = []
        self._number = 0
        self._items: list[Item] = []
        self._open: Item | None = None
        self._calls: dict[int, Item] = {}
        self._done: list[Fields] = []

    def pass_on(self, frame: bytes) -> bytes:
        """OpenAI's events for one of the engine's."""
        chunk = chunk_of(frame)
        if chunk is None or "choices" not in chunk:
            return self._other(frame)
        delta = self._reader.read(chunk)
        self._start()
        if delta.reasoning:
            self._text("reasoning", "response.reasoning_text.delta", delta.reasoning)
        if delta.text:
            self._text("message", "response.output_text.delta", delta.text)
        for call in delta.calls:
            self._call(call)
        return self._take()

    def body(self, body: bytes) -> bytes:
        """A whole response."""
        answer = json_object(body)
        if answer is None:
            return body
        delta = self._reader.read(answer)
        if delta.reasoning:
            self._new("reasoning").parts.append(delta.reasoning)
        if delta.text:
            self._new("message").parts.append(delta.text)
        for call in (*delta.calls, *self._reader.rest()):
            self._new("function_call", _with_id(call)).parts.append(call.arguments)
        status = self._status()
        self._done = [item.to_json(self._item_status(item)) for item in self._items]
        return orjson.dumps(self._response(status))

    def failure(self, body: bytes) -> bytes:
        """The end of a stream that failed: an `error` event, then the failed response."""
        self._start()
        error: Fields = (json_object(body) or {}).get("error") or {}
        code, message = error.get("code") or error.get("type"), error.get("message") or "the engine failed"
        self._emit("error", code=code, message=message, param=error.get("param"))
        self._close("incomplete")
        failure = {"code": "server_error", "message": message}
        self._emit("response.failed", response=self._response("failed", error=failure))
        return self._take()

    def _other(self, frame: bytes) -> bytes:
        if is_done(frame):
            return self._finish()
        error = error_data_of(frame)
        if error is not None:
            return self.failure(error)
        return frame if frame.startswith(b":") else b""

    def _start(self) -> None:
        if self._number:
            return
        self._emit("response.created", response=self._response("in_progress"))
        self._emit("response.in_progress", response=self._response("in_progress"))

    def _text(self, kind: str, event: str, text: str) -> None:
        item = self._open
        if item is None or item.kind != kind:
            item = self._begin(kind)
            self._emit(
                "response.content_part.added",
                item_id=item.id,
                output_index=item.index,
                content_index=0,
                part=item.part(""),
            )
        item.parts.append(text)
        extra: Fields = {"logprobs": []} if kind == "message" else {}
        self._emit(event, item_id=item.id, output_index=item.index, content_index=0, delta=text, **extra)

    def _call(self, call: CallDelta) -> None:
        item = self._calls.get(call.index)
        if item is None:
            item = self._calls[call.index] = self._begin("function_call", _with_id(call))
        if call.arguments:
            item.parts.append(call.arguments)
            self._emit(
                "response.function_call_arguments.delta",
                item_id=item.id,
                output_index=item.index,
                delta=call.arguments,
            )

    def _begin(self, kind: str, call: CallDelta | None = None) -> Item:
        self._close("completed")
        item = self._open = self._new(kind, call)
        self._emit("response.output_item.added", output_index=item.index, item=item.to_json("in_progress"))
        return item

    def _new(self, kind: str, call: CallDelta | None = None) -> Item:
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item = Item(kind, new_id(prefix), len(self._items), call, is_carried=is_wanted(self._asked))
        self._items.append(item)
        return item

    def _close(self, status: str) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        where: Fields = {"item_id": item.id, "output_index": item.index}
        if item.call is not None:
            self._emit("response.function_call_arguments.done", **where, arguments=item.text)
        else:
            where["content_index"] = 0
            if item.kind == "message":
                self._emit("response.output_text.done", **where, text=item.text, logprobs=[])
            else:
                self._emit("response.reasoning_text.done", **where, text=item.text)
            self._emit("response.content_part.done", **where, part=item.part(item.text))
        whole = item.to_json(status)
        self._done.append(whole)
        self._emit("response.output_item.done", output_index=item.index, item=whole)

    def _finish(self) -> bytes:
        self._start()
        for call in self._reader.rest():
            self._call(call)
        status = self._status()
        self._close(status)
        self._emit(f"response.{status}", response=self._response(status))
        return self._take()

    def _status(self) -> str:
        return "incomplete" if self._reader.finish_reason in _INCOMPLETE else "completed"

    def _item_status(self, item: Item) -> str:
        return self._status() if item is self._items[-1] else "completed"

    def _response(self, status: str, error: Fields | None = None) -> Fields:
        reader = self._reader
        reason = _INCOMPLETE.get(reader.finish_reason or "")
        echoed = {name: default if (v := self._asked.get(name)) is None else v for name, default in _ECHOED.items()}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
            "model": reader.model or self._asked.get("model") or "",
            "output": self._done,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
            **echoed,
        }

    def _usage(self) -> Fields:
        counts = self._reader.counts
        return {
            "input_tokens": counts.prompt,
            "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
            "output_tokens": counts.completion,
            "output_tokens_details": {"reasoning_tokens": self._reader.reasoning_tokens},
            "total_tokens": counts.total,
        }

    def _emit(self, kind: str, **fields: Any) -> None:
        data = orjson.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        self._out.append(encode_event(data, event=kind))

    def _take(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out


class ResponsesErrors:
    """OpenAI's errors; within a stream they are events of that stream."""

    id_header = None
    keep_alive = KEEP_ALIVE

    def __init__(self, stage: ResponsesStage) -> None:
        self._stage = stage

    def body(self, error: ApiError) -> bytes:
        """The error body."""
        return error.body

    def relayed(self, status: int, body: bytes) -> bytes:  # noqa: ARG002  the engine speaks this shape
        """The engine's body as it is."""
        return body

    def event(self, body: bytes) -> bytes:
        """The events that end a stream."""
        return self._stage.failure(body)


def _with_id(call: CallDelta) -> CallDelta:
    return CallDelta(call.index, call.id or new_id("call"), call.name, "")
