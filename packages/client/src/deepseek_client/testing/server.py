"""The scripted server: which handler answers which request, on a socket or in process."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from deepseek_client.asgi import ASGITransport, AsyncASGITransport
from deepseek_client.testing.answers import answer
from deepseek_client.testing.connection import Connection, Handler, Listener, Request
from deepseek_client.testing.in_process import InProcessApp


class FakeServer:
    """Answers request number n with handler number n; the last one repeats. Without a script it says "Hello".

    It listens on a socket of 127.0.0.1 from the moment that its `url` is asked for; `transport` and `async_transport`
    answer in process. It is a context manager.

    Attributes:
        requests: what came, in order.
        disconnected: set when a client has closed a connection, or let go of an answer in process.
    """

    def __init__(self, *handlers: Handler) -> None:
        self.requests: list[Request] = []
        self.disconnected = threading.Event()
        self._handlers: Sequence[Handler] = handlers or (answer(),)
        self._start = 0  # the number of the script's first request
        self._lock = threading.Lock()
        self._listener: Listener | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        with self._lock:
            if self._listener is None:
                self._listener = Listener(self.handle, self.disconnected)
        return self._listener.url

    @property
    def num_connections(self) -> int:
        """How many connections were made to its socket."""
        return 0 if self._listener is None else self._listener.num_connections

    def script(self, *handlers: Handler) -> None:
        """Say how the next requests are answered; the last handler repeats."""
        with self._lock:
            self._handlers = handlers or (answer(),)
            self._start = len(self.requests)

    @property
    def request(self) -> Request:
        """The only request that came.

        Raises:
            AssertionError: there were more, or none.
        """
        if len(self.requests) != 1:
            came = ", ".join(f"{request.method} {request.path}" for request in self.requests) or "none"
            raise AssertionError(f"one request was expected; there came {came}")
        return self.requests[0]

    def assert_script_done(self) -> None:
        """Fail if a handler of the script was not used.

        Raises:
            AssertionError: says how many were.
        """
        used = len(self.requests) - self._start
        if used < len(self._handlers):
            raise AssertionError(f"only {used} of {len(self._handlers)} scripted requests came")

    def transport(self) -> ASGITransport:
        """For `DeepSeek(transport=...)` or an `httpx.Client`: the same answers without a socket."""
        return ASGITransport(InProcessApp(self.handle, self.disconnected))

    def async_transport(self) -> AsyncASGITransport:
        """For `AsyncDeepSeek(transport=...)` or an `httpx.AsyncClient`: the same answers without a socket."""
        return AsyncASGITransport(InProcessApp(self.handle, self.disconnected))

    def handle(self, connection: Connection) -> bool | None:
        """Note a request, and answer it by the script."""
        with self._lock:
            number = len(self.requests) - self._start
            handler = self._handlers[min(number, len(self._handlers) - 1)]
            self.requests.append(connection.request)
        return handler(connection)

    def close(self) -> None:
        """Close the socket and all connections.

        Raises:
            AssertionError: a handler does not end.
        """
        if self._listener is not None:
            self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
