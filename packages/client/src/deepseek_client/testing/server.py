"""The scripted server: which handler answers which request, on a socket or in process.

In process it is an ASGI app: the same handlers, in threads, without a socket.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn, Self

from deepseek_client.asgi import ASGITransport, AsyncASGITransport
from deepseek_client.testing.answers import answer
from deepseek_client.testing.connection import Connection, Handler, Listener, Request

Message = MutableMapping[str, Any]


class _InProcessConnection(Connection):
    """One exchange with an ASGI server, whose loop runs in another thread than the handler."""

    def __init__(self, request: Request, send: Callable[[Message], Awaitable[None]]) -> None:
        self.request = request
        self.closed = threading.Event()
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._left: int | None = None  # of the body, where its length was promised

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._left = int(headers["content-length"]) if "content-length" in headers else None
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._do({"type": "http.response.start", "status": status, "headers": raw})

    def chunk(self, data: bytes) -> None:
        if self._left is not None:
            self._left -= len(data)
        self._do({"type": "http.response.body", "body": data, "more_body": self._left is None or self._left > 0})

    def end(self) -> None:
        self._do({"type": "http.response.body", "body": b"", "more_body": False})

    def cut(self) -> NoReturn:
        raise ConnectionAbortedError("the script breaks the connection")

    def until_closed(self) -> None:
        self.closed.wait()

    def _do(self, message: Message) -> None:
        if self.closed.is_set():
            raise BrokenPipeError("the client has gone")
        asyncio.run_coroutine_threadsafe(_as_coroutine(self._send(message)), self._loop).result()


class InProcessApp:
    """The ASGI app of a server's handlers.

    Args:
        handle: answers one request.
        disconnected: set when a client let go of an answer.
    """

    def __init__(self, handle: Callable[[Connection], bool | None], disconnected: threading.Event) -> None:
        self._handle = handle
        self._disconnected = disconnected

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise NotImplementedError(f"the fake server speaks http, not {scope['type']}")
        body = bytearray()
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = scope["query_string"].decode()
        path = scope["raw_path"].decode() + (f"?{query}" if query else "")
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        connection = _InProcessConnection(Request(scope["method"], path, headers, bytes(body)), send)
        watching = asyncio.create_task(self._watch(receive, connection))
        # A thread of its own: the loop's pool is small, and a silent handler holds its thread.
        answered: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._answer, args=(connection, answered), daemon=True).start()
        try:
            await answered
        except ConnectionError:  # the script breaks off, or the client has: an answer that is not whole says so
            return
        finally:
            connection.closed.set()
            watching.cancel()

    def _answer(self, connection: _InProcessConnection, answered: "asyncio.Future[bool | None]") -> None:
        def settle(result: bool | None, failure: Exception | None) -> None:
            if not answered.done():
                answered.set_exception(failure) if failure is not None else answered.set_result(result)

        result, failure = None, None
        try:
            result = self._handle(connection)
        except Exception as error:  # the server's to raise, in its own thread
            failure = error
        answered.get_loop().call_soon_threadsafe(settle, result, failure)

    async def _watch(self, receive: Callable[[], Awaitable[Message]], connection: _InProcessConnection) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        connection.closed.set()
        self._disconnected.set()


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


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

    def __exit__(self, *failure: object) -> None:
        self.close()
