"""What a handler is given: one request, and the means to answer it."""

import contextlib
import json
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, NoReturn


@dataclass(slots=True)
class Request:
    """A request as it came; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def is_stream(self) -> bool:
        """Whether it asks for a stream of events."""
        return bool(self.body) and bool(self.json.get("stream"))

    def assert_json(self, **fields: object) -> None:
        """Fail if a field of the body is another; None stands for one that is not there.

        Raises:
            AssertionError: names what differs.
        """
        body = self.json
        wrong = [
            f"{name}={body.get(name)!r}, not {value!r}" for name, value in fields.items() if body.get(name) != value
        ]
        if wrong:
            raise AssertionError(f"{self.method} {self.path} has {'; '.join(wrong)}")


class Connection(ABC):
    """The server's end of one exchange. The methods block, and run in a thread of the server."""

    request: Request

    def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        """Begin an answer whose body follows in chunks. `retry_after="1"` is the header retry-after."""
        self.begin(status, _headers(content_type, headers))

    def reply(self, content: bytes, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """A whole answer, with its length."""
        self.begin(status, {**_headers(content_type, headers), "content-length": str(len(content))})
        self.chunk(content)

    def send(self, data: bytes) -> None:
        """Send bytes as they are, for answers that are no proper HTTP; only on a socket.

        Raises:
            NotImplementedError: there is none.
        """
        raise NotImplementedError(f"there is no socket to send {data[:40]!r} to: use the server's url")

    @abstractmethod
    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status and the headers; without a content-length the body is chunked."""

    @abstractmethod
    def chunk(self, data: bytes) -> None:
        """Send a piece of the body, at once."""

    @abstractmethod
    def end(self) -> None:
        """End a body that came in chunks."""

    @abstractmethod
    def cut(self) -> None:
        """Break the connection here, whatever was promised.

        Raises:
            ConnectionAbortedError: always, to leave the handler.
        """

    @abstractmethod
    def until_closed(self) -> None:
        """Returns when the client has gone."""


Handler = Callable[[Connection], bool | None]
"""Answers one request by its Connection; False closes the connection."""


def _headers(content_type: str, headers: Mapping[str, str]) -> dict[str, str]:
    return {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}


WAIT_S = 10.0


class _SocketConnection(Connection):
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, request: Request) -> None:
        self.sock = sock
        self.request = request
        self._is_chunked = True

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._is_chunked = "content-length" not in headers
        if self._is_chunked:
            headers = {**headers, "transfer-encoding": "chunked"}
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def chunk(self, data: bytes) -> None:
        if data:  # an empty chunk would be the end
            self.send(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    def cut(self) -> NoReturn:
        raise ConnectionAbortedError("the script breaks the connection")

    def until_closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            while self.sock.recv(4096):
                pass


class Listener:
    """Accepts connections until it is closed.

    Args:
        handle: answers one request.
        disconnected: set when a client has closed its connection.
    """

    def __init__(self, handle: Callable[[Connection], bool | None], disconnected: threading.Event) -> None:
        self.num_connections = 0
        self._handle = handle
        self._disconnected = disconnected
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Close everything, and wait for the handlers.

        Raises:
            AssertionError: one does not end.
        """
        with contextlib.suppress(OSError):  # macOS: a listener is not connected
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)
            if thread.is_alive():
                raise AssertionError("a handler of the fake server hangs")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.num_connections += 1
                self._open.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError), sock.makefile("rb") as reader:
            while (request := _read_request(reader)) is not None:
                if self._handle(_SocketConnection(sock, request)) is False:
                    return
            self._disconnected.set()


def _read_request(reader: BufferedReader) -> Request | None:
    """The next request; None when the client has closed."""
    line = reader.readline()
    if not line:
        return None
    method, path, _ = line.decode().split()
    headers: dict[str, str] = {}
    while (line := reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return Request(method, path, headers, reader.read(int(headers.get("content-length", 0))))
