"""One request to an ASGI app and its answer, chunk by chunk, on one event loop."""

import asyncio
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
