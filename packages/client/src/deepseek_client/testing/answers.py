"""What a script answers with: bodies and events of DeepSeek's dialect, and handlers that send them well or badly.

Bodies are plain dicts, to be changed at will.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek_client.sse import DONE, encode_event
from deepseek_client.testing.connection import Connection, Handler

USAGE: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def generation(text: str = "Hello", finish_reason: str = "stop", **fields: object) -> dict[str, Any]:
    """The answer of `/v1/generate`."""
    return {
        "id": "gen-1",
        "object": "generation",
        "model": "m",
        "text": text,
        "finish_reason": finish_reason,
        "usage": USAGE,
    } | fields


def text_chunk(text: str, finish_reason: str | None = None, **fields: object) -> dict[str, Any]:
    """One event of a stream of `/v1/generate`."""
    return {
        "id": "gen-1",
        "object": "generation.chunk",
        "model": "m",
        "text": text,
        "finish_reason": finish_reason,
    } | fields


def completion(text: str = "Hello", finish_reason: str | None = "stop", **fields: object) -> dict[str, Any]:
    """The answer of `/v1/completions`; an event of its stream has the same shape."""
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]} | fields


def chat_completion(content: str | None = "Hello", finish_reason: str = "stop", **message: object) -> dict[str, Any]:
    """The answer of `/v1/chat/completions`; further names are fields of the message."""
    said = {"role": "assistant", "content": content} | message
    choice = {"index": 0, "message": said, "finish_reason": finish_reason}
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": USAGE,
    }


def chat_chunk(
    content: str | None, finish_reason: str | None = None, index: int = 0, **delta: object
) -> dict[str, Any]:
    """One event of a streamed chat; further names are fields of the delta."""
    choice = {"index": index, "delta": {"content": content} | delta, "finish_reason": finish_reason}
    return {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def tool_call_list(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Names and arguments as a message's `tool_calls`."""
    return [
        {
            "index": number,
            "id": f"call_{number + 1}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for number, (name, arguments) in enumerate(calls)
    ]


def reply(body: object, status: int = 200, content_type: str = "application/json", **headers: str) -> Handler:
    """A plain answer; `body` is bytes, or something to be sent as JSON."""

    def handler(connection: Connection) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.reply(content, status, content_type, headers)

    return handler


def events(*data: object, done: bool = True, **headers: str) -> Handler:
    """A stream of events, each in a chunk of its own; bytes are sent as they are, the rest as JSON."""

    def handler(connection: Connection) -> None:
        connection.head(**headers)  # pyright: ignore[reportArgumentType]  the names are of headers
        for item in data:
            connection.chunk(item if isinstance(item, bytes) else encode_event(json.dumps(item)))
        if done:
            connection.chunk(DONE)
        connection.end()

    return handler


def models(*ids: str) -> Handler:
    """The list of models."""
    data = [{"id": name, "object": "model", "owned_by": "test"} for name in ids]
    return reply({"object": "list", "data": data})


def answer(
    text: str = "Hello",
    *,
    reasoning: str | None = None,
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = (),
    finish_reason: str | None = None,
    usage: Mapping[str, Any] | None = None,
) -> Handler:
    """What the request asks for, saying `text`: a text, a chat or a completion, whole or as a stream of words.

    Args:
        text: what is said.
        reasoning: thought before it; chat only.
        tool_calls: names and arguments of functions that are called; chat only.
        finish_reason: "stop", or "tool_calls" with calls, if it is left out.
        usage: token counts; a few tokens if they are left out.
    """
    finish = finish_reason or ("tool_calls" if tool_calls else "stop")
    counts = dict(usage or USAGE)

    def handler(connection: Connection) -> None:
        request = connection.request
        if request.method == "GET":
            models("m")(connection)
        elif "chat" in request.path:
            _chat(connection)
        elif request.path.endswith("/completions"):
            whole = completion(text, finish, usage=counts)
            parts = [*(completion(word, None) for word in words), completion("", finish, usage=counts)]
            (events(*parts) if request.is_stream else reply(whole))(connection)
        else:
            parts = [*(text_chunk(word) for word in words), text_chunk("", finish, usage=counts)]
            (events(*parts) if request.is_stream else reply(generation(text, finish, usage=counts)))(connection)

    def _chat(connection: Connection) -> None:
        message: dict[str, Any] = {"reasoning_content": reasoning} if reasoning is not None else {}
        calls = tool_call_list(tool_calls)
        if calls:
            message["tool_calls"] = calls
        if not connection.request.is_stream:
            reply(chat_completion(text, finish, **message) | {"usage": counts})(connection)
            return
        thoughts = [] if reasoning is None else [chat_chunk(None, reasoning_content=reasoning)]
        called = [chat_chunk(None, tool_calls=calls)] if calls else []
        said = [chat_chunk(word) for word in words]
        trailer: dict[str, Any] = {**chat_chunk(None), "choices": [], "usage": counts}
        first = chat_chunk("", role="assistant")
        events(first, *thoughts, *said, *called, chat_chunk(None, finish), trailer)(connection)

    words = _words(text)
    return handler


def _words(text: str) -> list[str]:
    """The text in pieces, each with the space before its word."""
    pieces = text.split(" ")
    return [piece for piece in (pieces[0], *(f" {rest}" for rest in pieces[1:])) if piece]


def error(
    status: int, message: str = "the script says so", *, code: str | None = None, retry_after_s: float | None = None
) -> Handler:
    """A refusal in the usual form."""
    headers = {} if retry_after_s is None else {"retry_after": f"{retry_after_s:g}"}
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return reply(body, status, "application/json", **headers)


def storm(times: int, *, status: int = 429, retry_after_s: float | None = 0.0) -> list[Handler]:
    """So many refusals: `server.script(*storm(3), answer("Hello"))`."""
    return [error(status, "too many requests", code="rate_limit_exceeded", retry_after_s=retry_after_s)] * times


def flat_error(status: int, message: str = "the script says so") -> Handler:
    """A refusal without the `error` around its fields, as vLLM and SGLang send them."""
    return reply({"object": "error", "message": message, "type": "BadRequestError", "code": status}, status)


def html(status: int = 200, body: str = "<html><body>Sign in</body></html>") -> Handler:
    """A page, as a proxy or a login in between answers."""
    return reply(body.encode(), status, "text/html")


def blank(body: bytes = b"") -> Handler:
    """A 200 with nothing in it, or with blank lines only, as DeepSeek's queue leaves them."""
    return reply(body)


def silence() -> Handler:
    """No answer, until the client leaves."""
    return lambda connection: connection.until_closed()


def drop() -> Handler:
    """The connection breaks before a byte of the answer."""
    return lambda connection: connection.cut()


def cut(handler: Handler, after_bytes: int) -> Handler:
    """The answer's body breaks off after so many bytes."""
    return lambda connection: handler(_Cut(connection, after_bytes))


def slowly(handler: Handler, pause_s: float = 0.001, num_bytes: int = 1) -> Handler:
    """The answer's body comes in pieces of so many bytes, with a pause before each."""
    return lambda connection: handler(_Slow(connection, pause_s, num_bytes))


def keep_alives(handler: Handler, times: int = 3) -> Handler:
    """Before the answer come signs of life, as DeepSeek's queue sends them: comments of a stream, else blank lines."""
    return lambda connection: handler(_KeptAlive(connection, times))


class _Spoiled(Connection):
    """A connection that passes everything on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.request = connection.request

    def send(self, data: bytes) -> None:
        self._connection.send(data)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._connection.begin(status, headers)

    def chunk(self, data: bytes) -> None:
        self._connection.chunk(data)

    def end(self) -> None:
        self._connection.end()

    def cut(self) -> None:
        self._connection.cut()

    def until_closed(self) -> None:
        self._connection.until_closed()


class _Cut(_Spoiled):
    def __init__(self, connection: Connection, left: int) -> None:
        super().__init__(connection)
        self._left = left

    def chunk(self, data: bytes) -> None:
        kept = data[: self._left]
        if kept:
            super().chunk(kept)
        self._left -= len(data)
        if self._left < 0:
            self.cut()


class _Slow(_Spoiled):
    def __init__(self, connection: Connection, pause_s: float, num_bytes: int) -> None:
        super().__init__(connection)
        self._pause_s = pause_s
        self._num_bytes = num_bytes

    def chunk(self, data: bytes) -> None:
        for start in range(0, len(data), self._num_bytes):
            time.sleep(self._pause_s)
            super().chunk(data[start : start + self._num_bytes])


class _KeptAlive(_Spoiled):
    def __init__(self, connection: Connection, times: int) -> None:
        super().__init__(connection)
        self._times = times

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        sign = b": keep-alive\n\n" if "event-stream" in headers["content-type"] else b"\n"
        length = headers.get("content-length")
        if length is not None:
            headers = {**headers, "content-length": str(int(length) + len(sign) * self._times)}
        super().begin(status, headers)
        for _ in range(self._times):
            super().chunk(sign)
