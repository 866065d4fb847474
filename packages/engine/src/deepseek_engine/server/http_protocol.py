"""uvicorn's HTTP/1.1 protocol with a bound on request heads: httptools itself collects headers without end."""

from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 400 and closes when a request line with its headers grows past MAX_HEAD_BYTES."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_in_head = True
        self._num_head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Count what arrives before the head ends. Bytes that share a read with a body are counted with it."""
        super().data_received(data)
        if self._is_in_head and not self.transport.is_closing():
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"The request line and headers exceed {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._is_in_head = False
        self._num_head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next head may begin."""
        super().on_message_complete()
        self._is_in_head = True
