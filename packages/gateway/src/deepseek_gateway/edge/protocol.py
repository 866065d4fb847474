"""One connection: HTTP/1.1 as uvicorn speaks it, with bounds on what a caller may send before anybody looks at it.

Bounded are a request's head in bytes, lines and seconds; what comes between two pieces of a body (chunk extensions,
trailers); what comes behind a request before its answer is out; and the time in which a body nobody reads must end.
Requests are answered one after the other, and the connection is read on meanwhile: else nobody saw the caller leave.
"""

import asyncio
from typing import Any, Never

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from deepseek_client.types import error_body
from deepseek_gateway.edge.cycle import CallerCycle
from deepseek_gateway.edge.head import HeadLimits, RefusalError, Target, check_head, read_target, without_upgrade

LINGER_S = 5.0
"""Seconds in which the rest of a body may arrive after its request was answered, so that the answer gets through."""

MAX_BEHIND = 32
"""Requests that one read of the socket may bring behind the one that runs. Each costs a hundred times its bytes; what
later reads bring waits as bytes, `HIGH_WATER_LIMIT` of them."""

ASGI = {"version": "3.0", "spec_version": "2.3"}
INVALID = RefusalError(400, "the request is not valid HTTP")


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    `cycle` is the request that the parser reads, or read last; `_running` the one whose answer is due.
    """

    limits = HeadLimits()
    parser: Any  # uvicorn sets it to None when the connection ends
    cycle: Any  # a CallerCycle; None until the first request
    app: Any
    _running: CallerCycle | None = None
    _in_head = False
    _is_incomplete = False
    _is_over = False
    """Nothing more of what the caller sends counts."""
    _is_upgrade = False
    _has_progress = False
    _num_begun = _head_bytes = _quiet_bytes = 0
    _held = b""
    _refusal: RefusalError | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin the clock of the first head."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._answer(RefusalError(503, "too many connections are open: try again in 1 s"))
            self.transport.close()
            return
        self._start_timer(self.limits.timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks, and tell the request that runs."""
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.pipeline.clear()
        self._held = b""
        if self._running is not None:
            self._running.left()

    def data_received(self, data: bytes) -> None:
        """Read on, or keep it until the request before it is answered."""
        self._unset_keepalive_if_required()
        if self._is_over:
            return
        if self._is_incomplete or not self._is_running:
            self._feed(data)
            return
        self._held += data
        if len(self._held) > HIGH_WATER_LIMIT:  # to stop reading here would be not to hear that the caller left
            self._refuse(RefusalError(503, "too much came before an answer: wait for answers between requests"))

    def shutdown(self) -> None:
        """Let the request that runs be the last."""
        if self._running is None or self._running.response_complete:
            self.transport.close()
        else:
            self._running.keep_alive = False

    def on_message_begin(self) -> None:
        """A head begins."""
        self.url, self.headers = b"", []
        self._in_head = self._is_incomplete = self._has_progress = True
        self._head_bytes = 0
        self._num_begun += 1

    def on_url(self, url: bytes) -> None:
        """The request line, or a part of it."""
        self.url += url
        self._has_progress = True
        self._head_bytes += len(url)
        if self._head_bytes > self.limits.max_bytes:
            self._stop_parsing(self.limits.too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; behind a body it is a trailer, which counts and says nothing: see RFC 9110, section 6.5.1."""
        self._has_progress = True
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self.limits.max_bytes:
            self._stop_parsing(self.limits.too_large())
        if self._in_head:
            self.headers.append((name.lower(), value))
            if len(self.headers) > self.limits.max_headers:
                self._stop_parsing(self.limits.too_many())

    def on_headers_complete(self) -> None:
        """The head is there: refuse what could be read in two ways, else run the request."""
        self._has_progress = True
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self._is_upgrade = method != b"CONNECT" and self.parser.should_upgrade()
        if self._is_upgrade:  # it comes again without that: see `_parse`
            return
        try:
            must_wait = check_head(method, version, self.headers)
            scope = self._asgi_scope(method, version, read_target(self.url))
        except RefusalError as refusal:
            self._stop_parsing(refusal)
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        self._begin(CallerCycle(self, scope, keep_alive=keep_alive, waits_to_go_on=must_wait))
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        """More of the body."""
        self._has_progress = True
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.changed()

    def on_message_complete(self) -> None:
        """The body is there."""
        if self._is_upgrade:
            return
        self._is_incomplete = False
        self._has_progress = True
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.changed()

    def on_response_complete(self) -> None:
        """An answer is out: go on to the next request, or end."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        assert self._running is not None
        if not self._running.keep_alive:
            self._end()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._run(self.pipeline.pop()[0])
        elif self._refusal is not None:
            self._refuse(self._refusal)
        elif self._held:
            held, self._held = self._held, b""
            self._feed(held)
        elif self._is_incomplete:
            # An answer that came before the end of its request's body leaves that little time to end.
            self._start_timer(self.limits.timeout_s if self._in_head else LINGER_S)
        else:
            self._rest()

    @property
    def _is_running(self) -> bool:
        """Whether an answer is on its way, or will be."""
        return self._running is not None and not self._running.response_complete

    def _feed(self, data: bytes) -> None:
        """Parse, and see whether the caller takes its time."""
        self._has_progress, self._num_begun, was_idle = False, 0, not self._is_incomplete
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or INVALID)
            return
        if self.transport.is_closing():
            return
        self._count_quiet(len(data), was_idle=was_idle)
        if self._quiet_bytes > self.limits.max_bytes:
            quiet = RefusalError(400, f"more than {self.limits.max_bytes} bytes came between two pieces of the body")
            self._refuse(self.limits.too_large() if self._in_head else quiet)
        elif self._is_running:
            self._stop_timer()
        elif self._in_head or self.cycle is None:
            self._start_timer(self.limits.timeout_s)
        elif self._has_progress and not self._is_incomplete:
            self._stop_timer()
            self._rest()
        else:
            # A body that nobody reads, or line ends between two requests: neither keeps a connection open for long.
            self._start_timer(LINGER_S)

    def _count_quiet(self, size: int, *, was_idle: bool) -> None:
        """Count what the parser holds or passes over: a header until it is whole, extensions of chunks, trailers."""
        if self._in_head:
            # Of a head that begins in the middle of what came, nobody knows how much that is.
            is_known = not self._num_begun or (was_idle and self._num_begun == 1)
            self._quiet_bytes = (0 if self._num_begun else self._quiet_bytes) + (size if is_known else 0)
        else:
            self._quiet_bytes = 0 if self._has_progress or not self._is_incomplete else self._quiet_bytes + size

    def _parse(self, data: bytes) -> None:
        """Parse, and read a request that asks for another protocol as one that does not, as Java's client always does.

        The parser stops behind the head of such a request, and would take its body for the other protocol.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as paused:
                data = without_upgrade(self.parser.get_method(), self.url, self.headers) + data[paused.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
            else:
                return

    def _asgi_scope(self, method: bytes, version: str, target: Target) -> Scope:
        if target.host is not None:
            self.headers = [(b"host", target.host), *(pair for pair in self.headers if pair[0] != b"host")]
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": method.decode("ascii"),
            "scheme": self.scheme,
            "server": self.server,
            "client": self.client,
            "root_path": self.root_path,
            "path": self.root_path + target.path,
            "raw_path": target.raw_path,
            "query_string": target.query,
            "headers": self.headers,
            "state": {},
        }

    def _begin(self, cycle: CallerCycle) -> None:
        """Run a request, after those before it on this connection."""
        if not self._is_running:
            self.cycle = cycle
            self._run(cycle)
            return
        if len(self.pipeline) >= MAX_BEHIND:
            message = f"more than {MAX_BEHIND} requests came before an answer: wait for answers between them"
            self._stop_parsing(RefusalError(503, message))
        self.cycle = cycle
        self.pipeline.appendleft((cycle, self.app))

    def _run(self, cycle: Any) -> None:
        self._running = cycle
        self._start_asgi_task(cycle, self.app)

    def _refuse(self, refusal: RefusalError) -> None:
        """Take nothing more, and say why, behind the answers that are due."""
        self._stop_timer()
        self._is_over, self._held = True, b""
        in_body = self._is_incomplete and not self._in_head
        if self._is_running:
            self._refusal = refusal
            if in_body:
                self.cycle.break_off(refusal)
            return
        if not in_body:  # else its request was answered
            self._answer(refusal)
        self._end()

    def _answer(self, refusal: RefusalError) -> None:
        body = error_body(refusal.status, refusal.message).model_dump_json().encode()
        head = (
            b"content-type: application/json\r\nx-content-type-options: nosniff\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[refusal.status] + head + body)

    def _end(self) -> None:
        """Close, once the caller had the time to read the last answer.

        A socket that is closed while it holds bytes nobody read takes back what was sent: RFC 9112, section 9.6.
        """
        has_more = self._is_incomplete or self._is_over or bool(self._held) or bool(self.pipeline)
        self._is_over, self._held = True, b""
        self.pipeline.clear()
        if not has_more:
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._start_timer(LINGER_S)

    def _stop_parsing(self, refusal: RefusalError) -> Never:
        self._refusal = refusal  # the parser has its own exception for whatever is raised here
        raise refusal

    def _rest(self) -> None:
        """Wait for the next request."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

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
        if self._in_head and not self._is_over:
            self._answer(RefusalError(408, f"the request's head did not arrive within {self.limits.timeout_s:g} s"))
        self.transport.close()


def guarded(limits: HeadLimits) -> type[GuardedProtocol]:
    """The protocol with these limits, for uvicorn."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})
