"""Handlers that answer well."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek_client.sse import DONE, encode_event
from deepseek_client.testing import wire
from deepseek_client.testing.connection import Connection, Handler


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
    counts = dict(usage or wire.USAGE)

    def handler(connection: Connection) -> None:
        request = connection.request
        if request.method == "GET":
            models("m")(connection)
        elif "chat" in request.path:
            _chat(connection)
        elif request.path.endswith("/completions"):
            whole = wire.completion(text, finish, usage=counts)
            parts = [*(wire.completion(word, None) for word in words), wire.completion("", finish, usage=counts)]
            (events(*parts) if request.is_stream else reply(whole))(connection)
        else:
            parts = [*(wire.text_chunk(word) for word in words), wire.text_chunk("", finish, usage=counts)]
            (events(*parts) if request.is_stream else reply(wire.generation(text, finish, usage=counts)))(connection)

    def _chat(connection: Connection) -> None:
        message: dict[str, Any] = {"reasoning_content": reasoning} if reasoning is not None else {}
        calls = wire.tool_call_list(tool_calls)
        if calls:
            message["tool_calls"] = calls
        if not connection.request.is_stream:
            reply(wire.chat_completion(text, finish, **message) | {"usage": counts})(connection)
            return
        thoughts = [] if reasoning is None else [wire.chat_chunk(None, reasoning_content=reasoning)]
        called = [wire.chat_chunk(None, tool_calls=calls)] if calls else []
        said = [wire.chat_chunk(word) for word in words]
        trailer: dict[str, Any] = {**wire.chat_chunk(None), "choices": [], "usage": counts}
        first = wire.chat_chunk("", role="assistant")
        events(first, *thoughts, *said, *called, wire.chat_chunk(None, finish), trailer)(connection)

    words = _words(text)
    return handler


def _words(text: str) -> list[str]:
    """The text in pieces, each with the space before its word."""
    pieces = text.split(" ")
    return [piece for piece in (pieces[0], *(f" {rest}" for rest in pieces[1:])) if piece]
