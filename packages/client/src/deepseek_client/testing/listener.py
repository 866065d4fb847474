"""HTTP/1.1 on a real socket, a thread a connection: as little as clients need, so that every byte is the script's."""

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from io import BufferedReader
from typing import NoReturn

from deepseek_client.testing.connection import Connection, Request

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
