"""Small pieces of ASGI: read a body, send an answer, name a request."""

import re
import secrets
from collections.abc import Iterable
from typing import Final

from starlette.types import Receive, Scope, Send

from deepseek_engine.server.errors import ApiError

REQUEST_ID_KEY: Final = "deepseek_engine.request_id"
WRITE_KEY: Final = "deepseek_engine.write"
"""Where the server has one: `write(body) -> bool`, which sends more of an answer that has begun, at once. False if it
would have to wait, or cannot: `send` knows what to do then. A stream sends thousands of times, `send` is a coroutine
in three others, and those are interested in how an answer begins alone.
"""
Headers = Iterable[tuple[bytes, bytes]]

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_JSON_HEADERS: Final = ((b"content-type", b"application/json"),)


class ClientGoneError(Exception):
    """The caller left before its request was read."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a header; `name` is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


def choose_request_id(scope: Scope) -> str:
    """The caller's `x-request-id` if it is safe to log and echo, else a fresh one."""
    given = header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


def new_request_id() -> str:
    """An id that nobody can guess."""
    return f"req-{secrets.token_hex(16)}"


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        ApiError: 413, it is larger than `max_bytes`; announced sizes are refused before they are read.
        ClientGoneError: the caller left first.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def send_answer(send: Send, status: int, body: bytes, headers: Headers = _JSON_HEADERS) -> None:
    """Send a complete answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def error_headers(error: ApiError) -> dict[str, str]:
    """Headers of an error's answer."""
    headers = {"content-type": "application/json"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


async def send_error(send: Send, error: ApiError) -> None:
    """Send an error body."""
    headers = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    await send_answer(send, error.status, error.body, headers)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_bytes} bytes: send less text")
