"""Functions of the caller's around each attempt: they see the request, the answer's status, and its bytes to the end.

A middleware is called with a request and with what sends it on, and gives a response:

    def log(request, send):
        response = send(request)
        print(request.url, request.retries_taken, response.status)
        return response

It may send another request (`dataclasses.replace`), answer itself, or wrap `response.chunks` in a generator of its own,
which sees each chunk, the end, a failure, and (as GeneratorExit) a caller who leaves early.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from deepseek_client.errors import Phase
from deepseek_client.request import HTTPRequest
from deepseek_client.tidy import Tidy, close_later


@dataclass(slots=True)
class HTTPResponse:
    """One answer, whatever its status; header names in lower case. `chunks` is the body, as it comes."""

    status: int
    headers: dict[str, str]
    chunks: Iterator[bytes]


@dataclass(slots=True)
class AsyncHTTPResponse:
    """One answer, whatever its status; header names in lower case. `chunks` is the body, as it comes."""

    status: int
    headers: dict[str, str]
    chunks: AsyncIterator[bytes]


Send = Callable[[HTTPRequest], HTTPResponse]
AsyncSend = Callable[[HTTPRequest], Awaitable[AsyncHTTPResponse]]
Middleware = Callable[[HTTPRequest, Send], HTTPResponse]
"""Of the blocking client. `Send` raises APIConnectionError where there was no answer."""
AsyncMiddleware = Callable[[HTTPRequest, AsyncSend], Awaitable[AsyncHTTPResponse]]
"""Of the async client."""


class WatchedBody:
    """A response as the outermost middleware gave it; `bodies` are the driver's own beneath, which have the limits."""

    def __init__(
        self, middleware: Iterable[Middleware], request: HTTPRequest, send: Callable[[HTTPRequest], Any]
    ) -> None:
        self._bodies: list[Any] = []

        def innermost(request: HTTPRequest) -> HTTPResponse:
            body = send(request)
            self._bodies.append(body)
            return HTTPResponse(body.status, body.headers, body.chunks())

        call: Send = innermost
        for each in reversed(list(middleware)):
            call = partial(_call, each, call)
        try:
            response = call(request)
        except BaseException:
            self._close_bodies()
            raise
        self.status = response.status
        self.headers = response.headers
        self._chunks = iter(response.chunks)

    def read(self, deadline: float | None, phase: Phase) -> bytes:
        """The next bytes, `b""` at the end."""
        for body in self._bodies:
            body.limits = (deadline, phase)
        return next((chunk for chunk in self._chunks if chunk), b"")

    def close(self) -> None:
        """Let the middleware see the end, and let go of the responses."""
        with contextlib.suppress(ValueError):  # another thread is reading: closing the responses ends its read
            _closer(self._chunks)()
        self._close_bodies()

    def abandon(self) -> None:
        """Close from a finaliser: see the driver's body."""
        if not self._bodies:
            self.close()
            return
        for body in self._bodies[:-1]:
            body.abandon()
        self._bodies[-1].abandon(self.close)

    def _close_bodies(self) -> None:
        for body in self._bodies:
            body.close()


class AsyncWatchedBody:
    """A response as the outermost middleware gave it; `bodies` are the driver's own beneath, which have the limits."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._bodies: list[Any] = []
        self._loop = asyncio.get_running_loop()

    async def open(
        self,
        middleware: Sequence[AsyncMiddleware],
        request: HTTPRequest,
        send: Callable[[HTTPRequest], Awaitable[Any]],
    ) -> "AsyncWatchedBody":
        """Send the request through the middleware."""

        async def innermost(request: HTTPRequest) -> AsyncHTTPResponse:
            body = await send(request)
            self._bodies.append(body)
            return AsyncHTTPResponse(body.status, body.headers, body.chunks())

        call: AsyncSend = innermost
        for each in reversed(middleware):
            call = partial(_call, each, call)
        try:
            response = await call(request)
        except BaseException:
            await Tidy(self._close_bodies(), None)
            raise
        self.status = response.status
        self.headers = response.headers
        self._chunks = aiter(response.chunks)
        return self

    async def read(self, deadline: float | None, phase: Phase) -> bytes:
        """The next bytes, `b""` at the end."""
        for body in self._bodies:
            body.limits = (deadline, phase)
        while True:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                return b""
            if chunk:
                return chunk

    async def close(self) -> None:
        """Let the middleware see the end, and let go of the responses."""
        try:
            with contextlib.suppress(RuntimeError):  # another task is reading: closing the responses ends its read
                await _async_closer(self._chunks)()
        finally:
            await Tidy(self._close_bodies(), None)

    def abandon(self) -> None:
        """Close from a finaliser, which may run in any thread."""
        close_later(self._loop, self.close)

    async def _close_bodies(self) -> None:
        for body in self._bodies:
            await body.close()


def _call(middleware: Callable[[HTTPRequest, Any], Any], send: Any, request: HTTPRequest) -> Any:
    return middleware(request, send)


def _closer(chunks: Iterator[bytes]) -> Callable[[], None]:
    """What ends an iterator: a generator's close; others have nothing to end."""
    return getattr(chunks, "close", lambda: None)


def _async_closer(chunks: AsyncIterator[bytes]) -> Callable[[], Awaitable[None]]:
    async def nothing() -> None:
        pass

    return getattr(chunks, "aclose", nothing)
