"""An answer's way out: what every answer gets in its head, and a short way for the parts of a stream."""

from collections.abc import Awaitable

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from deepseek_gateway.edge.context import RequestContext
from deepseek_gateway.edge.security_headers import secured


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
            self.has_begun = True
            context = self._context
            context.status = message["status"]
            request_id = context.request_id.encode()
            ids = [(b"x-request-id", request_id)]
            if context.errors.id_header is not None:
                ids.append((context.errors.id_header, request_id))
            message["headers"] = secured([*message["headers"], *ids], is_tls=self._is_tls)
        return self._send(message)

    def wire(self) -> "Wire | None":
        """The short way to the caller; None under servers that are not ours."""
        cycle: object = getattr(self._send, "__self__", None)
        return Wire(cycle) if isinstance(cycle, RequestResponseCycle) else None


class Wire:
    """Writes parts of a stream without an ASGI message, where nothing needs to wait. uvicorn's cycle does all else."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_free(self) -> bool:
        """Whether a part can be written now: the head is out, the caller is there, and it reads."""
        cycle = self._cycle
        is_held_up = cycle.flow.write_paused or cycle.disconnected or cycle.response_complete
        return cycle.chunked_encoding is True and not is_held_up

    def write_part(self, data: bytes) -> None:
        """Write more of a stream, while `is_free`."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def wire_of(send: Send) -> Wire | None:
    """The short way to where `send` leads; None where it leads elsewhere first, as into a recording."""
    return send.wire() if isinstance(send, Sender) else None
