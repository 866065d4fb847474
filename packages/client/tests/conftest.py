"""A scripted HTTP server on a real socket, and a client of each kind to talk to it."""

import asyncio
import contextlib
import inspect
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from deepseek_client import AsyncDeepSeek, DeepSeek
from deepseek_client.sse import DONE, encode_event

WAIT_S = 10.0


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Connection:
    """The server's end of one connection."""

    sock: socket.socket

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def until_closed(self) -> None:
        """Returns when the client has gone."""
        with contextlib.suppress(ConnectionError):
            while self.sock.recv(4096):
                pass


Handler = Callable[[Connection], bool | None]
"""Answers one request; False closes the connection."""


@dataclass
class Server:
    """Answers request number n with handler number n; the last one repeats."""

    handlers: list[Handler] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    num_connections: int = 0
    disconnected: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = [threading.Thread(target=self._accept)]
        self._lock = threading.Lock()
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def script(self, *handlers: Handler) -> None:
        self.handlers = list(handlers)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "a handler of the scripted server hangs"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.num_connections += 1
                self._open.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError), sock.makefile("rb") as reader:
            while line := reader.readline():
                method, path, _ = line.decode().split()
                headers: dict[str, str] = {}
                while (line := reader.readline()) not in (b"\r\n", b""):
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = reader.read(int(headers.get("content-length", 0)))
                with self._lock:
                    handler = self.handlers[min(len(self.requests), len(self.handlers) - 1)]
                    self.requests.append(Request(method, path, headers, body))
                if handler(Connection(sock)) is False:
                    return
            self.disconnected.set()


def reply(body: object, status: int = 200, content_type: str = "application/json", **headers: str) -> Handler:
    """A plain answer; `body` is bytes, or something to be sent as JSON."""

    def handler(connection: Connection) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", f"content-length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.send("\r\n".join([*lines, "", ""]).encode() + content)

    return handler


def events(*data: object, done: bool = True, **headers: str) -> Handler:
    """A stream of events, each in a chunk of its own; bytes are sent as they are."""

    def handler(connection: Connection) -> None:
        connection.head(**headers)
        for item in data:
            connection.chunk(item if isinstance(item, bytes) else encode_event(json.dumps(item)))
        connection.chunk(DONE) if done else None
        connection.send(b"0\r\n\r\n")

    return handler


def text_event(text: str, finish_reason: str | None = None, **fields: object) -> dict[str, Any]:
    return {
        "id": "gen-1",
        "object": "generation.chunk",
        "model": "m",
        "text": text,
        "finish_reason": finish_reason,
    } | fields


def chat_event(
    content: str | None, finish_reason: str | None = None, index: int = 0, **delta: object
) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": content} | delta, "finish_reason": finish_reason}
    return {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
GENERATION = {
    "id": "gen-1",
    "object": "generation",
    "model": "m",
    "text": "Hello",
    "finish_reason": "stop",
    "usage": USAGE,
}
CHAT = {
    "id": "chat-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
MESSAGES = [{"role": "user", "content": "Hi"}]


async def settle(value: Any) -> Any:
    """The result of a call of either client."""
    return await value if inspect.isawaitable(value) else value


async def collect(stream: Any) -> list[Any]:
    """All items of a stream of either client."""
    if hasattr(stream, "__aiter__"):
        return [item async for item in stream]
    return list(stream)


async def collect_into(items: list[Any], stream: Any) -> None:
    """All items of a stream of either client, kept also when it fails."""
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            items.append(item)
    else:
        items.extend(stream)


async def take(stream: Any) -> Any:
    """The next item of a stream of either client."""
    return await anext(stream) if hasattr(stream, "__anext__") else next(stream)


@contextlib.asynccontextmanager
async def entered(stream: Any) -> AsyncIterator[Any]:
    """`with` or `async with`."""
    if hasattr(stream, "__aenter__"):
        async with stream as value:
            yield value
    else:
        with stream as value:
            yield value


async def until(condition: Callable[[], bool]) -> None:
    """Poll, with a deadline."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


class Kit:
    """The helpers above, for test modules, which cannot import this one."""

    reply = staticmethod(reply)
    events = staticmethod(events)
    text_event = staticmethod(text_event)
    chat_event = staticmethod(chat_event)
    settle = staticmethod(settle)
    collect = staticmethod(collect)
    collect_into = staticmethod(collect_into)
    take = staticmethod(take)
    entered = staticmethod(entered)
    until = staticmethod(until)
    USAGE = USAGE
    GENERATION = GENERATION
    CHAT = CHAT
    MESSAGES = MESSAGES


@pytest.fixture
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def server() -> Iterator[Server]:
    scripted = Server()
    yield scripted
    scripted.close()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEEPSEEK_API_KEY", "DEEPSEEK_BASE_URL", "DEEPSEEK_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["sync", "async"])
async def connect(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Callable[..., Any]]:
    """Makes clients of one kind, for the scripted server."""
    clients: list[Any] = []

    def make(**options: Any) -> Any:
        cls = DeepSeek if request.param == "sync" else AsyncDeepSeek
        client = cls(**{"base_url": server.url, "api_key": "dsk_test_secretsecret1234", **options})
        clients.append(client)
        return client

    yield make
    for client in clients:
        await settle(client.close())
