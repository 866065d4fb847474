"""CuttingProxy: a TCP proxy that breaks connections after so many bytes, as a bad network does."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Self
from urllib.parse import urlsplit

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close by a reset, without what is still to be sent."""


class CuttingProxy:
    """Stands in front of a server, which may be another one after a while.

    Args:
        url: the server's.

    Attributes:
        target: the server that the next connection goes to.
        cuts: for each connection that is to come, how many bytes of answers it lets through; None, and those beyond the
            list, let all of them through.
        num_cut: how many connections were broken.
        resets: break by a reset; else by an end that looks like any other.
    """

    def __init__(self, url: str) -> None:
        self.target = url
        self.cuts: list[int | None] = []
        self.num_cut = 0
        self.resets = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            _shut(sock)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                self._sockets.append(caller)
                self._start(self._serve, caller, self.cuts.pop(0) if self.cuts else None)

    def _serve(self, caller: socket.socket, limit: int | None) -> None:
        parts = urlsplit(self.target)
        with caller, contextlib.suppress(OSError):
            server = socket.create_connection((parts.hostname or "", parts.port or 80))
            self._sockets.append(server)
            with server:
                self._start(_forward, caller, server)
                for data in _received(server):
                    if limit is not None and len(data) >= limit:
                        caller.sendall(data[:limit])
                        self._cut(caller)
                        return
                    limit = None if limit is None else limit - len(data)
                    caller.sendall(data)
                _shut(caller)

    def _cut(self, caller: socket.socket) -> None:
        self.num_cut += 1
        if self.resets:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            caller.shutdown(socket.SHUT_RD)  # the thread that reads of it holds it open until it wakes
        else:
            _shut(caller)

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


def _forward(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for data in _received(source):
            sink.sendall(data)
    _shut(sink)


def _received(sock: socket.socket) -> Iterator[bytes]:
    while data := sock.recv(65536):
        yield data


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
