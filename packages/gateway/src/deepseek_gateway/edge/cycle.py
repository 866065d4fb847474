"""One request and its answer on a connection: uvicorn's cycle, with less work for each.

Beyond ASGI it gives a body that is there already without a wait, and calls back when the caller leaves, so that no task
has to wait for that.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from starlette.types import Message, Receive, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from deepseek_gateway.edge.head import RefusalError

_CONTROLS = bytes({*range(32), 127} - {ord("\t")})
_WITHOUT_BODY = frozenset({204, 304})
_UNUSED = asyncio.Event()
"""What uvicorn sets when something changes; `changed` does that here."""


class CallerCycle(RequestResponseCycle):
    """See the module. `receive` and `send` are ASGI's."""

    def __init__(self, protocol: HttpToolsProtocol, scope: Scope, *, keep_alive: bool, waits_to_go_on: bool) -> None:
        super().__init__(
            scope=scope,  # pyright: ignore[reportArgumentType]  uvicorn's type for the same dict
            transport=protocol.transport,
            flow=protocol.flow,
            logger=protocol.logger,
            access_logger=protocol.access_logger,
            access_log=False,
            default_headers=protocol.server_state.default_headers,
            message_event=_UNUSED,
            expect_100_continue=waits_to_go_on,
            keep_alive=keep_alive,
            on_response=protocol.on_response_complete,
        )
        self.on_left: Callable[[], None] | None = None
        """Called when the caller leaves before its answer is whole."""
        self.fault: RefusalError | None = None
        """What is wrong with the body: nothing more of it comes."""
        self._ends_with_connection = False
        self._has_news = False
        self._news: asyncio.Event | None = None
        self._start: Message | None = None

    def changed(self) -> None:
        """More of the body came, the answer is whole, or the caller left."""
        self._has_news = True
        if self._news is not None:
            self._news.set()

    def left(self) -> None:
        """The connection is gone."""
        self.changed()
        if self.response_complete:
            return
        self.disconnected = True
        if self.on_left is not None:
            self.on_left()

    def break_off(self, fault: RefusalError) -> None:
        """No more of the body can be read."""
        self.fault, self.keep_alive = fault, False
        self.changed()

    def whole_body(self) -> bytes | None:
        """The body, if all of it has come and nobody took any; else None, and `receive` gives it."""
        if self.more_body or not self._has_news or self.disconnected or self.response_complete:
            return None
        return self._take_body()

    async def receive(self) -> Message:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The next of the body, or that the caller left, or that no more can be read: then there is a `fault`."""
        if self.waiting_for_100_continue and not (self.transport.is_closing() or self.disconnected):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        while not (self._has_news or self.disconnected or self.response_complete):
            self.flow.resume_reading()
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            await self._news.wait()
        if self.disconnected or self.response_complete or self.fault is not None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._take_body(), "more_body": self.more_body}

    async def send(self, message: Message) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Send a part of the answer. The head goes out with the first of the body, as ASGI has it."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self._begin(message)
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self._write(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} is not what an answer goes on with here")

    @property
    def is_ready(self) -> bool:
        """Whether an answer can be sent whole without a wait: none has begun, and the caller is there and reads."""
        return not (self.response_started or self.disconnected or self.flow.write_paused)

    def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer, while `is_ready`."""
        self._begin({"type": "http.response.start", "status": status, "headers": headers})
        self._write(body, is_last=True)

    def _begin(self, start: Message) -> None:
        self.response_started, self._start = True, start
        if self.waiting_for_100_continue and self.more_body:
            self.keep_alive = False  # nobody knows whether the body still comes: RFC 9110, section 10.1.1
        self.waiting_for_100_continue = False

    def _write(self, body: bytes, *, is_last: bool) -> None:
        head = b""
        if self._start is not None:
            head = self._head(self._start["status"], self._start.get("headers", ()))
            self._start = None
        if self.scope["method"] == "HEAD":
            self.expected_content_length, body = 0, b""
        elif self.chunked_encoding:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body = piece + b"0\r\n\r\n" if is_last else piece
        elif not self._ends_with_connection:
            self.expected_content_length -= len(body)
        if self.expected_content_length < 0 or (is_last and self.expected_content_length):
            raise RuntimeError(f"the answer's length is wrong by {-self.expected_content_length} bytes")
        if head or body:
            self.transport.write(head + body)
        if is_last:
            self.response_complete = True
            self.changed()
            self.on_response()

    def _head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        pairs = [*self.default_headers, *headers]
        lines = b"\r\n".join(map(b": ".join, pairs))
        if len(lines.translate(None, _CONTROLS)) != len(lines) - 2 * (len(pairs) - 1):
            raise RuntimeError("a header of the answer holds a control character")
        given, more = dict(pairs), b""
        if (length := given.get(b"content-length")) is not None:
            self.chunked_encoding, self.expected_content_length = False, int(length)
        elif given.get(b"transfer-encoding") == b"chunked":
            self.chunked_encoding = True
        elif self.scope["http_version"] == "1.0":
            self._ends_with_connection = True  # there are no chunks in HTTP/1.0, and it is never kept alive
        elif self.scope["method"] != "HEAD" and status not in _WITHOUT_BODY:
            self.chunked_encoding, more = True, b"\r\ntransfer-encoding: chunked"
        if b"close" in given.get(b"connection", b"").lower():
            self.keep_alive = False
        elif not self.keep_alive:
            more += b"\r\nconnection: close"
        return b"%b%b%b\r\n\r\n" % (STATUS_LINE[status], lines, more)

    def _take_body(self) -> bytes:
        self._has_news, body = False, bytes(self.body)
        self.body = bytearray()
        self.flow.resume_reading()  # a large body stopped it; only who reads hears that the caller left
        return body


def caller_of(receive: Receive) -> CallerCycle | None:
    """Whose `receive` it is; None under servers that are not ours, and where an answer is made for a recording."""
    owner: Any = getattr(receive, "__self__", None)
    return owner if isinstance(owner, CallerCycle) else None
