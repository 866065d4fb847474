"""The two transports for httpx clients: one for its AsyncClient, one for its Client. Both work with httpx2 as well.

Nothing is imported of either library: the request that comes in tells which one it is.
"""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

from deepseek_client.asgi.server import AppEndedError, ASGIApp, ASGIExchange, ASGIServer, Head

T = TypeVar("T")

MAX_BUFFERED_BYTES = 64 * 1024
SHUTDOWN_S = 5.0
_FAILED: Head = (500, [(b"content-type", b"text/plain; charset=utf-8")])


class _Settings:
    """What both transports take."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        raise_app_exceptions: bool = True,
        client: tuple[str, int] = ("127.0.0.1", 1),
        root_path: str = "",
        max_buffered_bytes: int = MAX_BUFFERED_BYTES,
        shutdown_s: float = SHUTDOWN_S,
    ) -> None:
        self._app = app
        self._raises = raise_app_exceptions
        self._client = client
        self._root_path = root_path
        self._max_buffered_bytes = max_buffered_bytes
        self._shutdown_s = shutdown_s

    def _serve(self) -> ASGIServer:
        return ASGIServer(self._app, self._max_buffered_bytes, self._shutdown_s)

    def _scope(self, request: Any) -> dict[str, Any]:
        url = request.url
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": self._root_path,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": (url.host, url.port or (443 if url.scheme == "https" else 80)),
            "client": self._client,
        }

    async def _open(
        self, server: ASGIServer, request: Any, body: AsyncIterator[bytes]
    ) -> tuple[Head, ASGIExchange | None]:
        """The head of the answer; no exchange where the app failed and its failures are answers."""
        library = _library(request)
        try:
            return await server.open(self._scope(request), body, _read_s(request))
        except TimeoutError as error:
            raise library.ReadTimeout("the app has not begun its answer in time", request=request) from error
        except AppEndedError as error:
            raise library.RemoteProtocolError(str(error), request=request) from error
        except Exception:
            if self._raises:
                raise
            return _FAILED, None

    async def _next_chunk(self, exchange: ASGIExchange | None, request: Any) -> bytes:
        library = _library(request)
        if exchange is None:
            return b""
        try:
            async with asyncio.timeout(_read_s(request)):
                return await exchange.next_chunk()
        except TimeoutError as error:
            exchange.disconnect()
            raise library.ReadTimeout("the app has sent nothing in time", request=request) from error
        except AppEndedError as error:
            raise library.RemoteProtocolError(str(error), request=request) from error
        except Exception as error:
            if self._raises:
                raise
            raise library.ReadError(f"the app failed: {error!r}", request=request) from error
        except BaseException:  # a cancelled read ends the answer, as it ends a connection
            exchange.disconnect()
            raise


class AsyncASGITransport(_Settings):
    """Answers an `httpx.AsyncClient` by an app on the same event loop: `AsyncDeepSeek(transport=...)`.

    The app starts (its lifespan) with the first request or `async with`, and ends with `aclose`.

    Args:
        app: the ASGI app.
        raise_app_exceptions: whether what the app raises is raised to the caller; else it is a 500, or a broken
            connection once the answer has begun, as over a network.
        client: the address that the app sees.
        root_path: where the app believes to be mounted.
        max_buffered_bytes: how much of an answer may wait for its reader before the app's `send` waits too.
        shutdown_s: how long requests may go on after `aclose`, before they are cancelled.
    """

    _server: ASGIServer | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request; gives the response as soon as it has begun."""
        head, exchange = await self._open(self._started(), request, aiter(request.stream))
        body = _async_body(_library(request))(lambda: self._next_chunk(exchange, request), exchange)
        return _response(request, head, body)

    async def aclose(self) -> None:
        """Disconnect what still runs, and end the app."""
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    async def __aenter__(self) -> Self:
        await self._started().start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    def _started(self) -> ASGIServer:
        """One for each event loop: the next `asyncio.run` starts the app anew."""
        loop = asyncio.get_running_loop()
        if self._server is None or self._loop is not loop:
            self._server, self._loop = self._serve(), loop
        return self._server


class ASGITransport(_Settings):
    """Answers an `httpx.Client` by an app on an event loop in a thread of its own: `DeepSeek(transport=...)`.

    Arguments as for AsyncASGITransport.
    """

    _running: "tuple[_LoopThread, ASGIServer] | None" = None

    def handle_request(self, request: Any) -> Any:
        """Send a request; gives the response as soon as it has begun."""
        content: bytes = request.read()
        loop, server = self._started()
        head, exchange = loop.run(self._open(server, request, _once(content)))
        body = _sync_body(_library(request))(lambda: loop.run(self._next_chunk(exchange, request)), loop, exchange)
        return _response(request, head, body)

    def close(self) -> None:
        """Disconnect what still runs, end the app, and stop the thread."""
        with _LOCK:
            running, self._running = self._running, None
        if running is not None:
            loop, server = running
            try:
                loop.run(server.close())
            finally:
                loop.stop()

    def __enter__(self) -> Self:
        loop, server = self._started()
        loop.run(server.start())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    def _started(self) -> "tuple[_LoopThread, ASGIServer]":
        with _LOCK:
            if self._running is None:
                self._running = _LoopThread(), self._serve()
            return self._running


_LOCK = threading.Lock()


class _LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="deepseek-asgi", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; an interrupted wait cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Any) -> None:
        """Call a function on the loop, whenever it comes to it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


class _AsyncBody:
    def __init__(self, read: Any, exchange: ASGIExchange | None) -> None:
        self._read = read
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._read():
            yield chunk

    async def aclose(self) -> None:
        if self._exchange is not None:
            self._exchange.disconnect()


class _SyncBody:
    def __init__(self, read: Any, loop: _LoopThread, exchange: ASGIExchange | None) -> None:
        self._read = read
        self._loop = loop
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._read():
            yield chunk

    def close(self) -> None:
        if self._exchange is not None:
            self._loop.call(self._exchange.disconnect)


def _library(request: Any) -> Any:
    """Httpx or httpx2, whichever the request is of."""
    return sys.modules[type(request).__module__.partition(".")[0]]


@cache
def _async_body(library: Any) -> Any:
    return type("ASGIBody", (_AsyncBody, library.AsyncByteStream), {})


@cache
def _sync_body(library: Any) -> Any:
    return type("ASGIBody", (_SyncBody, library.SyncByteStream), {})


def _response(request: Any, head: Head, body: Any) -> Any:
    status, headers = head
    return _library(request).Response(status, headers=headers, stream=body, request=request)


def _read_s(request: Any) -> float | None:
    return request.extensions.get("timeout", {}).get("read")
