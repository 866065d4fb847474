"""HTTP/1.1 as uvicorn speaks it, with bounds on what a caller may send before anybody looks at it.

A request's head is limited in bytes, lines and seconds; so is the time in which a body nobody reads must end. What two
servers could read in two ways (both lengths, two hosts, upgrades) is refused, and the connection is closed.
"""

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from deepseek_client.types import error_body
from deepseek_gateway.edge.cycle import CallerCycle

LINGER_S = 5.0
"""Seconds in which the rest of a body may arrive after its request was answered, so that the answer gets through."""

MAX_BEHIND = 32
"""Requests that may wait behind the one that runs on their connection. Each costs a hundred times its bytes."""

ASGI = {"version": "3.0", "spec_version": "2.3"}
LENGTHS = frozenset({b"content-length", b"transfer-encoding"})
INVALID = "the request is not valid HTTP"


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bounds on the head of a request: line and headers together; and on connections at once."""

    max_bytes: int = 32 * 1024
    max_headers: int = 100
    timeout_s: float = 10.0
    max_connections: int = 20_000


class RefusalError(Exception):
    """Raised within the parser: the request is answered with this status, and the connection closed."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    limits = HeadLimits()
    parser: Any  # uvicorn sets it to None when the connection ends
    cycle: Any  # a CallerCycle, the one that comes in; None until the first request
    app: Any
    _served: CallerCycle | None = None
    _in_head = False
    _is_incomplete = False
    _head_bytes = _unparsed_bytes = 0
    _refusal: tuple[int, str] | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin the clock of the first head."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "too many connections are open: try again in 1 s")
            return
        self._start_timer(self.limits.timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell the request that runs and those behind it."""
        self._stop_timer()
        super().connection_lost(exc)
        for cycle in (self._served, *(behind for behind, _ in self.pipeline)):
            if isinstance(cycle, CallerCycle):
                cycle.left()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and see whether the caller takes its time."""
        # The parser holds a header until it is whole, however long that is. Only behind a body, which nobody should
        # send a head behind, the first piece of a head goes uncounted here.
        is_counted = self._in_head or not self._is_incomplete
        super().data_received(data)
        if is_counted:
            self._unparsed_bytes += len(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._unparsed_bytes > self.limits.max_bytes:
            self._refuse(431, f"the request's head is larger than {self.limits.max_bytes} bytes")
        elif self._is_running:
            self._stop_timer()
        elif self._in_head or self.cycle is None:
            self._start_timer(self.limits.timeout_s)
        else:
            # A body that nobody reads, or line ends between two requests: neither keeps a connection open for long.
            self._start_timer(LINGER_S)

    def on_message_begin(self) -> None:
        """A head begins."""
        self.url, self.headers = b"", []
        self._in_head = self._is_incomplete = True
        self._head_bytes = self._unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        """The request line, or a part of it."""
        self.url += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self.headers.append((name.lower(), value))
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self.limits.max_bytes:
            self._count(0)
        if len(self.headers) > self.limits.max_headers:
            self._stop_parsing(431, f"the request has more than {self.limits.max_headers} headers")

    def on_headers_complete(self) -> None:
        """The head is there: refuse what could be read in two ways, else run the request."""
        self._in_head = False
        version, must_wait = self.parser.get_http_version(), False
        num_hosts, lengths = 0, list[tuple[bytes, bytes]]()
        for header in self.headers:
            name = header[0]
            if name in LENGTHS:
                lengths.append(header)
            elif name == b"host":
                num_hosts += 1
            elif name == b"expect":
                must_wait = header[1].lower() == b"100-continue"
        if num_hosts != 1 and not (num_hosts == 0 and version == "1.0"):
            self._stop_parsing(400, f"a request has one Host header, not {num_hosts}")
        if self.parser.should_upgrade():
            self._stop_parsing(400, "this server does not change protocols: leave out Upgrade, and CONNECT")
        if len(lengths) > 1:
            self._stop_parsing(400, "a request has one Content-Length or one Transfer-Encoding, not both or several")
        is_encoded = bool(lengths) and lengths[0][0] == b"transfer-encoding"
        if is_encoded and (version == "1.0" or lengths[0][1].strip().lower() != b"chunked"):
            self._stop_parsing(400, "the only Transfer-Encoding is chunked, and HTTP/1.0 has none")
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        self._begin(CallerCycle(self, self._asgi_scope(version), keep_alive=keep_alive, waits_to_go_on=must_wait))

    def on_body(self, body: bytes) -> None:
        """More of the body."""
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.changed()

    def on_message_complete(self) -> None:
        """The body is there."""
        self._is_incomplete = False
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.changed()

    def on_response_complete(self) -> None:
        """An answer is out. One that came before the end of its request's body leaves that little time to end."""
        super().on_response_complete()
        if self._is_incomplete and not self._is_running and not self.transport.is_closing():
            self._start_timer(self.limits.timeout_s if self._in_head else LINGER_S)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's
        """What the parser does not take, as the errors of this API look."""
        status, message = self._refusal or (400, INVALID)
        self._refuse(status, message)

    @property
    def _is_running(self) -> bool:
        """Whether an answer is on its way, or will be."""
        return self.cycle is not None and not self.cycle.response_complete

    def _asgi_scope(self, version: str) -> Scope:
        parsed = httptools.parse_url(self.url)
        path = parsed.path.decode("ascii")
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": self.parser.get_method().decode("ascii"),
            "scheme": self.scheme,
            "server": self.server,
            "client": self.client,
            "root_path": self.root_path,
            "path": self.root_path + (unquote(path) if "%" in path else path),
            "raw_path": parsed.path,
            "query_string": parsed.query or b"",
            "headers": self.headers,
            "state": {},
        }

    def _begin(self, cycle: CallerCycle) -> None:
        """Run a request, after the one before it on this connection."""
        is_first = not self._is_running
        if len(self.pipeline) >= MAX_BEHIND:
            self._stop_parsing(400, f"more than {MAX_BEHIND} requests wait on this connection")
        self.cycle = cycle
        if is_first:
            self._start_asgi_task(cycle, self.app)
        else:  # reading goes on: else nobody would hear that the caller left
            self.pipeline.appendleft((cycle, self.app))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, status: int, message: str) -> None:
        if self._is_running:
            # The answer to an earlier request is on its way: a second one must not run into it.
            self.transport.abort()
            return
        body = error_body(status, message).model_dump_json().encode()
        head = (
            b"content-type: application/json\r\nx-content-type-options: nosniff\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.limits.max_bytes:
            self._stop_parsing(431, f"the request's head is larger than {self.limits.max_bytes} bytes")

    def _stop_parsing(self, status: int, message: str) -> None:
        self._refusal = (status, message)
        raise RefusalError(message)

    def _start_timer(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._in_head:
            self._refuse(408, f"the request's head did not arrive within {self.limits.timeout_s:g} s")
        else:
            self.transport.close()


def guarded(limits: HeadLimits) -> type[GuardedProtocol]:
    """The protocol with these limits, for uvicorn."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})
