"""uvicorn's HTTP/1.1 protocol with a bound on request heads, and a short way out for streams.

httptools itself collects headers without end.
"""

from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deepseek_engine.server.errors import ApiError
from deepseek_engine.server.http import WRITE_KEY, error_headers, new_request_id

MAX_HEAD_BYTES: Final = 64 * 1024


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 400 and closes when a request line with its headers grows past MAX_HEAD_BYTES."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_in_head = True
        self._num_head_bytes = 0
        self._num_heads = 0

    def data_received(self, data: bytes) -> None:
        """Count reads that hold nothing but a piece of a head: one that also ends a head or a body says too little."""
        was_in_head, num_heads = self._is_in_head, self._num_heads
        super().data_received(data)
        if was_in_head and self._num_heads == num_heads and not self.transport.is_closing():
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"The request line and headers exceed {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._is_in_head = False
        self._num_head_bytes = 0
        self._num_heads += 1
        super().on_headers_complete()
        # The app has not begun: its task is only scheduled.
        cast("dict[str, Any]", self.scope)[WRITE_KEY] = _Writer(self.cycle).write

    def on_message_complete(self) -> None:
        """The next head may begin."""
        super().on_message_complete()
        self._is_in_head = True

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as everything else is answered: an error body with a request id."""
        failure = ApiError(400, msg)
        headers = [*error_headers(failure).items(), ("x-request-id", new_request_id()), ("connection", "close")]
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"HTTP/1.1 400 Bad Request\r\n{head}content-length: {len(failure.body)}\r\n\r\n"
        self.transport.write(head.encode() + failure.body)
        self.transport.close()


class _Writer:
    """Sends more of a chunked answer, as the cycle's `send` does with a body that is not the last."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def write(self, body: bytes) -> bool:
        """Send at once, or not at all."""
        cycle = self._cycle
        has_begun = cycle.response_started and not cycle.response_complete and cycle.chunked_encoding
        if not has_begun or cycle.disconnected or cycle.flow.write_paused:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True
