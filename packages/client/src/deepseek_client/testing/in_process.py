"""The scripted server as an ASGI app: the same handlers, in threads, without a socket."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NoReturn

from deepseek_client.testing.connection import Connection, Request

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
