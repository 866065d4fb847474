"""An answer's way out: what every answer gets in its head, and a short way for the parts of a stream."""

from collections.abc import Awaitable

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from deepseek_gateway.edge.context import RequestContext
from deepseek_gateway.edge.cycle import CallerCycle
from deepseek_gateway.edge.security_headers import Headers, secured


class Sender:
    """ASGI's `send` of one request."""

    def __init__(self, send: Send, context: RequestContext, scope: Scope) -> None:
        self._send = send
        self._context = context
        self._is_tls = scope["scheme"] == "https"
        self.has_begun = False

    def __call__(self, message: Message) -> Awaitable[None]:
        """Send one message; the head gets the request's id and the security headers."""
        if message["type"] == "http.response.start":
            message["headers"] = self._head(message["status"], message["headers"])
        return self._send(message)

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """Send a whole answer at once; False where that may have to wait, and nothing was sent."""
        cycle: object = getattr(self._send, "__self__", None)
        if not isinstance(cycle, CallerCycle) or not cycle.is_ready:
            return False
        cycle.answer(status, self._head(status, headers), body)
        return True

    def _head(self, status: int, headers: Headers) -> Headers:
        self.has_begun = True
        context = self._context
        context.status = status
        request_id = context.request_id.encode()
        ids = [(b"x-request-id", request_id)]
        if context.errors.id_header is not None:
            ids.append((context.errors.id_header, request_id))
        return secured([*headers, *ids], is_tls=self._is_tls)

    def wire(self) -> "Wire | None":
        """The short way to the caller, once the head is out; None for HTTP/1.0, and under servers that are not ours."""
        cycle: object = getattr(self._send, "__self__", None)
        return Wire(cycle) if isinstance(cycle, RequestResponseCycle) and cycle.chunked_encoding is True else None


class Wire:
    """Writes parts of a stream without an ASGI message, where nothing needs to wait. uvicorn's cycle does all else."""

    __slots__ = ("_cycle", "_flow", "_write")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._write = cycle.transport.write

    def write_part(self, data: bytes) -> bool:
        """Write more of a stream that has not ended; False while the caller does not read, or once it left."""
        if self._flow.write_paused or self._cycle.disconnected:
            return False
        self._write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


def wire_of(send: Send) -> Wire | None:
    """The short way to where `send` leads, once a head went there; None where it leads into a recording first."""
    return send.wire() if isinstance(send, Sender) else None
