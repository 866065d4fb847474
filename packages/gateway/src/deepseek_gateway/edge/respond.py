"""Answers as ASGI messages."""

from collections.abc import Awaitable, Mapping

from starlette.types import Send

from deepseek_gateway.edge.error_shape import OPENAI_ERRORS, ErrorShape
from deepseek_gateway.errors import ApiError

JSON = b"application/json"
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
"""Proxies must neither keep nor gather events."""


async def send_body(
    send: Send, status: int, body: bytes, content_type: bytes = JSON, headers: Mapping[str, str] | None = None
) -> None:
    """A whole answer."""
    head = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head + encode_headers(headers or {})})
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


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Header pairs as ASGI wants them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
