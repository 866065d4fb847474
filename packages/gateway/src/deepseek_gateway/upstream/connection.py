"""One HTTP/1.1 connection to an engine, on llhttp: an asyncio protocol that hands pieces of an answer straight on.

It carries one request at a time. Its answer owns what was read, so that the connection can serve the next request
while the last bytes of this one still wait for a slow caller.
"""

import asyncio
import math
from collections.abc import Callable
from typing import cast

import httptools

from deepseek_gateway.errors import UpstreamCutError

READ_BUFFER_BYTES = 64 * 1024
"""Bytes of an answer read ahead of a slow caller; no more is read from the engine at twice this."""

MAX_HEAD_BYTES = 64 * 1024
"""The most that may come before an answer's body begins."""


class BrokenError(ConnectionError):
    """The connection ended, or what came over it is not HTTP."""


class StaleError(BrokenError):
    """A connection that had served before ended before a byte of this answer came: it was closed as it was taken."""


class Answer:
    """An engine's response as it comes in: its head, and the pieces of its body that nobody has taken yet.

    `headers` have lower-case names; of a name that comes twice, the last value counts. While somebody waits in `read`,
    `taker` is offered bytes of the body as they come; it says whether it took them, and must not raise. Only what it
    leaves wakes the reader.
    """

    __slots__ = (
        *("_connection", "_pieces", "_size", "_waiter"),
        *("fault", "has_head", "headers", "is_whole", "status", "taker"),
    )

    def __init__(self, connection: "EngineConnection") -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.has_head = False
        self.is_whole = False
        self.fault: BrokenError | None = None
        self.taker: Callable[[bytes], bool] | None = None

    @property
    def content_type(self) -> str:
        """Of the body."""
        return self.headers.get(b"content-type", b"application/json").decode("latin-1")

    @property
    def retry_after_s(self) -> float | None:
        """What the engine asks callers to wait."""
        try:
            seconds = float(self.headers[b"retry-after"])
        except (KeyError, ValueError):
            return None
        return seconds if 0 <= seconds < math.inf else None

    async def head(self) -> None:
        """Wait for the head.

        Raises:
            BrokenError: there will be none.
        """
        while not self.has_head:
            if self.fault is not None:
                raise self.fault
            await self.news()

    def taken(self) -> bytes:
        """All that is here of the body and that nobody took; empty when there is nothing just now."""
        if not self._pieces:
            return b""
        data = self._joined()
        self._clear()
        return data

    async def read(self) -> bytes:
        """The next bytes, as soon as there are any; empty at the end. Cancelling loses none.

        Raises:
            UpstreamCutError: the connection broke; all that came before was given before.
        """
        while not self._pieces:
            if self.is_whole:
                return b""
            if self.fault is not None:
                raise UpstreamCutError(f"the engine's answer broke off: {self.fault}") from self.fault
            await self.news()
        return self.taken()

    async def read_all(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            UpstreamCutError: the connection broke, or the body is larger than `limit`.
        """
        parts: list[bytes] = []
        size = 0
        while part := await self.read():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise UpstreamCutError(f"the engine's answer is larger than {limit} bytes")
        return b"".join(parts)

    def close(self) -> None:
        """Drop the connection unless the body came to its end; then it is free for the next request already."""
        self.taker = None
        if not self.is_whole:
            self._connection.abort()

    def add(self, piece: bytes) -> int:
        """More of the body came; gives how much waits. `came` follows."""
        self._pieces.append(piece)
        self._size += len(piece)
        return self._size

    def came(self) -> None:
        """All that one read of the socket brought is here."""
        if self._pieces and self.offer(self._joined()):
            self._clear()
            if not self.is_whole and self.fault is None:
                return
        self.wake()

    def offer(self, piece: bytes) -> bool:
        """Whether all that one read of the socket brought was taken at once. Who waits for it has had all before it."""
        taker, waiter = self.taker, self._waiter
        return taker is not None and waiter is not None and not waiter.done() and taker(piece)

    def wake(self) -> None:
        """Something changed."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _joined(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def _clear(self) -> None:
        """Everything that waited is taken."""
        if self._size > READ_BUFFER_BYTES:
            self._connection.resume_for(self)
        self._pieces.clear()
        self._size = 0

    def news(self) -> asyncio.Future[None]:
        """What to wait for: more comes, or the end. One task at a time waits; cancelling loses nothing."""
        self._waiter = waiter = self._connection.loop.create_future()
        return waiter


class EngineConnection(asyncio.Protocol):
    """See the module. `on_free` is called when it can take the next request, `on_lost` when it is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_free: Callable[["EngineConnection"], None],
        on_lost: Callable[["EngineConnection"], None],
    ) -> None:
        self.loop = loop
        self._on_free = on_free
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._incoming: Answer | None = None
        self._is_paused = False
        self._has_served = False
        self._has_bytes = False
        self._head_bytes = 0
        self._has_length = False
        self._has_chunk_ended = False
        self._is_between_chunks = False
        self.idle_since_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> Answer:
        """Send a whole request; gives what will become of its answer."""
        assert self._transport is not None
        assert self._incoming is None
        self._incoming = incoming = Answer(self)
        self._has_bytes = self._has_length = self._is_between_chunks = False
        self._head_bytes = 0
        self._transport.write(request)
        return incoming

    def resume_for(self, incoming: Answer) -> None:
        """Read on, if reading stopped because of this answer."""
        if self._is_paused and self._incoming is incoming:
            self._resume()

    def abort(self) -> None:
        """Cut it."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        incoming = self._incoming
        if incoming is None:  # nobody asked
            self.abort()
            return
        if self._is_between_chunks and (piece := whole_chunk(data)) is not None:
            # The parser, which is where it was, need not see this: most events of a stream come so.
            if not incoming.offer(piece):
                self.on_body(piece)
                incoming.wake()
            return
        self._has_bytes = True
        self._has_chunk_ended = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            incoming.fault = BrokenError(f"what came is no HTTP answer: {error}")
            self.abort()
        else:
            if not incoming.has_head:
                self._head_bytes += len(data)
                if self._head_bytes <= MAX_HEAD_BYTES:
                    return
                incoming.fault = BrokenError(f"the answer's head is larger than {MAX_HEAD_BYTES} bytes")
                self.abort()
        # A head of a chunk may follow the chunk that ended; but before its line end is no other.
        self._is_between_chunks = self._has_chunk_ended and data.endswith(b"\n\r\n")
        incoming.came()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone. An answer without a length ends with its connection, as HTTP/1.0 has it."""
        incoming, self._incoming = self._incoming, None
        self._transport = None
        self._on_lost(self)
        if incoming is None:
            return
        if exc is None and incoming.has_head and incoming.fault is None and not self._has_length:
            incoming.is_whole = True
        elif incoming.fault is None:
            kind = StaleError if self._has_served and not self._has_bytes else BrokenError
            incoming.fault = kind(str(exc) if exc is not None and str(exc) else "the connection was closed")
        incoming.wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came."""
        name = name.lower()
        if name in {b"content-length", b"transfer-encoding"}:
            self._has_length = True
        if self._incoming is not None:
            self._incoming.headers[name] = value

    def on_headers_complete(self) -> None:
        """A head came. One of 1xx only announces another."""
        incoming = self._incoming
        assert incoming is not None
        status = self._parser.get_status_code()
        if status < 200:
            incoming.headers.clear()
            return
        incoming.status, incoming.has_head = status, True

    def on_body(self, body: bytes) -> None:
        """A piece of the body came."""
        incoming = self._incoming
        assert incoming is not None
        self._has_chunk_ended = False
        if incoming.add(body) > 2 * READ_BUFFER_BYTES and not self._is_paused:
            assert self._transport is not None
            self._is_paused = True
            self._transport.pause_reading()

    def on_chunk_complete(self) -> None:
        """A piece of a chunked body came to its end."""
        self._has_chunk_ended = True

    def on_message_complete(self) -> None:
        """The answer is whole: the connection is free, if both sides want to keep it."""
        incoming = self._incoming
        if incoming is None or not incoming.has_head:
            return
        incoming.is_whole = True
        self._incoming = None
        if self._is_paused:
            self._resume()
        if self._parser.should_keep_alive() and self.is_open:
            self._has_served = True
            self._on_free(self)
        else:
            assert self._transport is not None
            self._transport.close()

    def _resume(self) -> None:
        self._is_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()


def whole_chunk(data: bytes) -> bytes | None:
    """What is in bytes that are one chunk of a chunked body, as servers write it; None for all others."""
    start = data.find(b"\r\n") + 2
    size = len(data) - start - 2
    if size <= 0 or not data.endswith(b"\r\n") or not data.startswith(b"%x\r\n" % size):
        return None
    return data[start:-2]
