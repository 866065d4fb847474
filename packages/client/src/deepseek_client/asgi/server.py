"""An app as a server runs it: its lifespan, the loop and thread that it lives in, and each of its exchanges."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
ASGIApp = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

Head = tuple[int, list[tuple[bytes, bytes]]]
"""Status and headers."""


class AppEndedError(Exception):
    """The app returned before its answer was whole."""


class ASGIExchange:
    """One request that an app is answering.

    The app runs in a task of its own. What it sends waits here until it is read, up to a limit; beyond it, `send`
    blocks, as a full socket does.

    Args:
        body: the chunks of the request's body.
        max_buffered_bytes: how much of the answer may wait; a larger chunk passes alone.
    """

    def __init__(self, body: AsyncIterator[bytes], max_buffered_bytes: int) -> None:
        self._body: AsyncIterator[bytes] | None = body
        self._max_buffered_bytes = max_buffered_bytes
        self._head: Head | None = None
        self._chunks: deque[bytes] = deque()
        self._num_buffered_bytes = 0
        self._is_whole = False
        self._is_done = False
        self._failure: Exception | None = None
        self._gone = asyncio.Event()  # the caller left, or has its answer: the app hears http.disconnect
        self._sent = asyncio.Event()  # there is something to read
        self._read = asyncio.Event()  # there is room for more

    async def run(self, app: ASGIApp, scope: MutableMapping[str, Any]) -> None:
        """Let the app answer. What it raises is the reader's to hear."""
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:
            self._failure = error
        finally:
            self._is_done = True
            self._gone.set()
            self._sent.set()

    async def head(self) -> Head:
        """Status and headers, once they are sent.

        Raises:
            Exception: what the app raised instead; AppEndedError: it just ended.
        """
        while self._head is None:
            self._check_alive()
            await self._until(self._sent)
        return self._head

    async def next_chunk(self) -> bytes:
        """The next bytes of the answer as the app sent them, `b""` at the end.

        Raises:
            Exception: what the app raised before the answer was whole; AppEndedError: it just ended.
        """
        while not self._chunks:
            if self._is_whole:
                return b""
            self._check_alive()
            await self._until(self._sent)
        chunk = self._chunks.popleft()
        self._num_buffered_bytes -= len(chunk)
        self._read.set()
        return chunk

    def disconnect(self) -> None:
        """Tell the app that nobody listens any more."""
        self._chunks.clear()
        self._num_buffered_bytes = 0
        self._gone.set()
        self._read.set()

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_done:
            raise AppEndedError("the app ended before its answer was whole")

    async def _until(self, event: asyncio.Event) -> None:
        event.clear()
        await event.wait()

    async def _receive(self) -> Message:
        if self._body is not None and not self._gone.is_set():
            try:
                return {"type": "http.request", "body": await anext(self._body), "more_body": True}
            except StopAsyncIteration:
                self._body = None
                return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            self._head = (message["status"], headers)
        elif message["type"] == "http.response.body":
            await self._send_body(message.get("body", b""), is_last=not message.get("more_body", False))
        self._sent.set()

    async def _send_body(self, chunk: bytes, *, is_last: bool) -> None:
        while self._num_buffered_bytes and self._num_buffered_bytes + len(chunk) > self._max_buffered_bytes:
            if self._gone.is_set():
                break
            await self._until(self._read)
        if self._gone.is_set():
            await asyncio.sleep(0)  # as a server does with bytes for a peer that has left; never a loop without a pause
            return
        if chunk:
            self._chunks.append(bytes(chunk))
            self._num_buffered_bytes += len(chunk)
        if is_last:
            self._is_whole = True
            self._gone.set()


class ASGIServer:
    """Serves one app on the running loop.

    Args:
        app: the app.
        max_buffered_bytes: how much of an answer may wait for its reader.
        shutdown_s: how long requests may go on after `close`, before they are cancelled.
    """

    def __init__(self, app: ASGIApp, max_buffered_bytes: int, shutdown_s: float) -> None:
        self._app = app
        self._max_buffered_bytes = max_buffered_bytes
        self._shutdown_s = shutdown_s
        self._lifespan = Lifespan(app)
        self._starting: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Task[None], ASGIExchange] = {}

    async def start(self) -> None:
        """Run the app's start, once.

        Raises:
            RuntimeError: it failed.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._lifespan.start())
        await asyncio.shield(self._starting)

    async def open(
        self, scope: dict[str, Any], body: AsyncIterator[bytes], head_s: float | None
    ) -> tuple[Head, ASGIExchange]:
        """Send a request, wait for the head of its answer.

        Raises:
            TimeoutError: none came within `head_s`.
            Exception: what the app raised.
        """
        await self.start()
        exchange = ASGIExchange(body, self._max_buffered_bytes)
        task = asyncio.create_task(exchange.run(self._app, scope | {"state": dict(self._lifespan.state)}))
        self._running[task] = exchange
        task.add_done_callback(self._running.pop)
        try:
            async with asyncio.timeout(head_s):
                return await exchange.head(), exchange
        except BaseException:
            exchange.disconnect()
            raise

    async def close(self) -> None:
        """Disconnect what still runs, wait for it, cancel what stays, and run the app's end."""
        for exchange in self._running.values():
            exchange.disconnect()
        if self._running:
            _, late = await asyncio.wait(list(self._running), timeout=self._shutdown_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._starting is not None:
            with contextlib.suppress(RuntimeError):  # a start that failed has been told to who asked
                await self._starting
            await self._lifespan.end()


class Lifespan:
    """The lifespan of one app on one event loop. An app that knows no lifespan is used without.

    Attributes:
        state: what the app wants each request to see.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._answer: asyncio.Future[Message] | None = None
        self._has_asked = False

    async def start(self) -> None:
        """Run the app's start.

        Raises:
            RuntimeError: it failed.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        message = await self._answer
        if message["type"] == "lifespan.startup.failed":
            raise RuntimeError(f"the app did not start: {message.get('message') or 'it does not say why'}")

    async def end(self) -> None:
        """Run the app's end, if it started.

        Raises:
            RuntimeError: it failed.
        """
        if self._task is None or self._task.done():
            return
        self._answer = asyncio.get_running_loop().create_future()
        self._ending.set()
        message = await self._answer
        await self._task
        if message["type"] == "lifespan.shutdown.failed":
            raise RuntimeError(f"the app did not end well: {message.get('message') or 'it does not say why'}")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        ended: Message = {"type": "lifespan.unknown"}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:
            # An app without a lifespan raises at the scope; one that was asked to start or end has failed at that.
            if self._has_asked:
                stage = "shutdown" if self._ending.is_set() else "startup"
                ended = {"type": f"lifespan.{stage}.failed", "message": repr(error)}
        await self._send(ended)

    async def _receive(self) -> Message:
        if not self._has_asked:
            self._has_asked = True
            return {"type": "lifespan.startup"}
        await self._ending.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)
