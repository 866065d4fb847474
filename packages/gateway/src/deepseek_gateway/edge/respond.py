"""Answers as ASGI messages."""

from collections.abc import Awaitable, Mapping

from starlette.types import Send

from deepseek_gateway.edge.error_shape import OPENAI_ERRORS, ErrorShape
from deepseek_gateway.edge.security_headers import Headers
from deepseek_gateway.edge.sender import Sender
from deepseek_gateway.errors import ApiError

JSON = b"application/json"
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
"""Proxies must neither keep nor gather events."""


def send_at_once(send: Send, status: int, body: bytes, content_type: bytes, headers: Mapping[str, str]) -> bool:
    """A whole answer, where nothing needs to wait; False where `send_body` must."""
    return isinstance(send, Sender) and send.answer(status, _body_headers(body, content_type, headers), body)


async def send_body(
    send: Send, status: int, body: bytes, content_type: bytes = JSON, headers: Mapping[str, str] | None = None
) -> None:
    """A whole answer."""
    head = _body_headers(body, content_type, headers or {})
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, shape: ErrorShape = OPENAI_ERRORS) -> None:
    """An error body."""
    await send_body(send, error.status, shape.body(error), headers=error.headers)


def start_stream(send: Send, headers: Mapping[str, str]) -> Awaitable[None]:
    """The head of an event stream."""
    head = [*STREAM_HEADERS, *encode_headers(headers)]
    return send({"type": "http.response.start", "status": 200, "headers": head})


def send_part(send: Send, data: bytes) -> Awaitable[None]:
    """More of a stream."""
    return send({"type": "http.response.body", "body": data, "more_body": True})


def end_stream(send: Send) -> Awaitable[None]:
    """The end of a stream."""
    return send({"type": "http.response.body", "body": b"", "more_body": False})


def encode_headers(headers: Mapping[str, str]) -> Headers:
    """Header pairs as ASGI wants them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _body_headers(body: bytes, content_type: bytes, headers: Mapping[str, str]) -> Headers:
    return [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *encode_headers(headers)]
