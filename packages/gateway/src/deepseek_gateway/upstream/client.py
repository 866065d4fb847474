"""HTTP to the engines: a pool of connections for each.

Connections are our own protocol over llhttp (`connection.py`): an HTTP library's client costs three times the CPU of a
request and of each chunk (`benchmarks/candidates.py`), and its import a third of the gateway's start.
"""

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from deepseek_gateway.errors import UnreachableError
from deepseek_gateway.upstream.address import UpstreamAddress
from deepseek_gateway.upstream.connection import Answer, BrokenError, EngineConnection, StaleError

IDLE_CONNECTION_S = 4.0
"""Servers close idle connections after 5 s (uvicorn's default): ours go first, so that none is reused as it dies."""

MAX_SMALL_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class SmallAnswer:
    """A whole small response."""

    status: int
    body: bytes


class UpstreamClient:
    """HTTP to one engine, over a pool of connections. Make it inside the event loop."""

    def __init__(
        self,
        address: UpstreamAddress,
        key: SecretStr | None,
        connect_timeout_s: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address = address
        self.is_closed = False
        """Whether its connections are."""
        parts = urlsplit(address.base)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self._loop = asyncio.get_running_loop()
        self._idle: deque[EngineConnection] = deque()
        self._all: set[EngineConnection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        head = {"host": parts.netloc, "accept-encoding": "identity", "user-agent": "deepseek-gateway"}
        if key is not None:
            head["authorization"] = f"Bearer {key.get_secret_value()}"
        self._head = _lines(head)
        self._json_head = self._head + b"content-type: application/json\r\n"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Send a JSON body and wait for the head of the answer.

        Raises:
            UpstreamError: there was none.
        """
        request = self.post_request(url, body, headers)
        return await self.answered(request, self.send(request))

    def post_request(self, url: str, body: bytes, headers: dict[str, str]) -> bytes:
        """A request with a JSON body, for `send` and `answered`."""
        more = _lines({**headers, "content-length": str(len(body))})
        return b"".join((_request_line("POST", url, self._origin), self._json_head, more, b"\r\n", body))

    def send(self, request: bytes) -> Answer | None:
        """Send over a connection that waits for a request; None when there is none. The answer is the caller's."""
        connection = self._take_idle()
        return None if connection is None else connection.send(request)

    async def answered(self, request: bytes, sent: Answer | None) -> Answer:
        """Wait for the head of the answer to a request, which is sent now unless it was.

        Raises:
            UpstreamError: there was none.
        """
        with _translated(self.address):
            return await _reused(sent) or await _headed((await self._connect()).send(request))

    async def get(self, url: str, timeout_s: float) -> SmallAnswer:
        """A small answer, whole.

        Raises:
            UpstreamError: there was none in time; its cause is a TimeoutError if the engine was reached.
        """
        return await self._small("GET", url, timeout_s)

    async def post_empty(self, url: str, timeout_s: float) -> SmallAnswer:
        """Post without a body.

        Raises:
            UpstreamError: there was no answer in time.
        """
        return await self._small("POST", url, timeout_s)

    async def close(self) -> None:
        """Close all connections."""
        self.is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # their ends are told

    async def _small(self, method: str, url: str, timeout_s: float) -> SmallAnswer:
        request = _request_line(method, url, self._origin) + self._head + b"content-length: 0\r\n\r\n"
        is_connecting = False
        with _translated(self.address):
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await _reused(self.send(request))
                    if answer is None:
                        is_connecting = True
                        connection = await self._connect()
                        is_connecting = False
                        answer = await _headed(connection.send(request))
                    try:
                        return SmallAnswer(answer.status, await answer.read_all(MAX_SMALL_BYTES))
                    finally:
                        answer.close()
            except TimeoutError as error:
                if is_connecting:  # a machine that is off, or a name that nobody knows: not a slow answer
                    raise BrokenError(f"no connection within {timeout_s:g} s") from error
                raise

    def _take_idle(self) -> EngineConnection | None:
        """The connection that was used last, while it is young; the engine closes those that wait for long."""
        oldest_s = time.monotonic() - IDLE_CONNECTION_S
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since_s > oldest_s:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> EngineConnection:
        """A new connection.

        Raises:
            OSError, TimeoutError: there is none.
        """
        if self.is_closed:
            raise BrokenError("the client is closed")
        make = lambda: EngineConnection(self._loop, self._freed, self._lost)  # noqa: E731
        async with asyncio.timeout(self._connect_timeout_s):
            if self.address.socket_path is not None:
                _, connection = await self._loop.create_unix_connection(make, self.address.socket_path)
            else:
                _, connection = await self._loop.create_connection(make, self._host, self._port, ssl=self._tls)
        self._all.add(connection)
        if not connection.is_open:
            self._lost(connection)
            raise BrokenError("the connection was closed at once")
        return connection

    def _freed(self, connection: EngineConnection) -> None:
        if self.is_closed:
            connection.abort()
            return
        connection.idle_since_s = time.monotonic()
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(IDLE_CONNECTION_S, self._sweep)

    def _lost(self, connection: EngineConnection) -> None:
        self._all.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Close connections that nobody used for a while."""
        self._sweeping = None
        oldest_s = time.monotonic() - IDLE_CONNECTION_S
        while self._idle and self._idle[0].idle_since_s <= oldest_s:
            self._idle.popleft().abort()
        if self._idle:
            self._sweeping = self._loop.call_later(IDLE_CONNECTION_S / 4, self._sweep)


@lru_cache(256)
def _request_line(method: str, url: str, origin: str) -> bytes:
    path = quote(url.removeprefix(origin) or "/", safe="/%?=&:@!$'()*+,;~")
    return f"{method} {path} HTTP/1.1\r\n".encode()


def _lines(headers: dict[str, str]) -> bytes:
    """Header lines.

    Raises:
        ValueError: a value would end its line.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header's value holds a line end")
    return lines.encode("latin-1")


async def _reused(sent: Answer | None) -> Answer | None:
    """The answer to what was sent on a connection that had waited; None if there was none, or it was closed."""
    if sent is not None:
        with contextlib.suppress(StaleError):  # closed as we took it: a fresh one tells
            return await _headed(sent)
    return None


async def _headed(answer: Answer) -> Answer:
    """The answer, once its head is here; a wait that ends early drops it."""
    try:
        await answer.head()
    except BaseException:
        answer.close()
        raise
    return answer


@contextlib.contextmanager
def _translated(address: UpstreamAddress) -> Generator[None]:
    try:
        yield
    except (OSError, TimeoutError) as error:
        message = f"the engine at {address.url} cannot be reached: {_describe(error)}"
        raise UnreachableError(message, is_unavailable=True) from error


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def is_idle(data: bytes) -> bool:
    """Whether these are whole comments and empty lines only, as servers send while they queue."""
    if data[:1] not in {b":", b"\n"} or not data.endswith(b"\n"):
        return False
    return all(not line.strip() or line.startswith(b":") for line in data.split(b"\n"))
