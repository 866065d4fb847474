"""What is known of the HTTP library: how to make its clients, what its failures mean. The one module that imports it.

It is httpx, or httpx2, which has the same API under another name: what DEEPSEEK_HTTP_LIBRARY says, else httpx, else the
one that is installed. A caller's own client may be of either: nothing is used of it but its methods, and exceptions are
caught from whichever of the two is loaded. It is imported with the first request, not with the package.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn, Self

from deepseek_client.errors import (
    CLASS_OF_PHASE,
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    ConnectError,
    DeepSeekError,
    Phase,
    StreamClosedError,
    TLSError,
)
from deepseek_client.request import HTTPRequest

MAX_REFUSAL_BYTES = 1024 * 1024
"""How much is read of an answer that is an error, or not the stream that was asked for."""

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""How much is read of any other answer."""

LIBRARIES = ("httpx", "httpx2")


@cache
def library() -> Any:
    """The HTTP library of clients of our own making.

    Raises:
        ConfigurationError: DEEPSEEK_HTTP_LIBRARY names another one, or the one that it names is not installed.
    """
    asked = os.environ.get("DEEPSEEK_HTTP_LIBRARY")
    name = next((name for name in LIBRARIES if asked in (None, "", name) and find_spec(name) is not None), None)
    if name is None:
        raise ConfigurationError(f"DEEPSEEK_HTTP_LIBRARY={asked!r} must be httpx or httpx2, and installed")
    return import_module(name)


def make_client(transport: Any | None, *, trust_env: bool) -> Any:
    """A blocking client; `transport` is what it sends with, None a pool of connections."""
    return library().Client(limits=_limits(), trust_env=trust_env, transport=transport)


def make_async_client(transport: Any | None, *, trust_env: bool) -> Any:
    """A client for the running event loop; arguments as for `make_client`."""
    return library().AsyncClient(limits=_limits(), trust_env=trust_env, transport=transport)


def _limits() -> Any:
    return library().Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=30.0)


def build(client: Any, request: HTTPRequest, **extensions: object) -> Any:
    """The library's own request; of the extensions `timeout` has its limits, `trace` is told of each step."""
    return client.build_request(
        request.method,
        request.url,
        headers=dict(request.headers),
        content=request.body,
        extensions=extensions,
    )


def timeouts_of(request: HTTPRequest, deadline: float | None) -> tuple[dict[str, float | None], Phase]:
    """The library's timeouts until the response begins, and which of our limits the wait for it stands for."""
    limits = request.timeout
    left = None if deadline is None else max(deadline - time.monotonic(), 0.001)

    def capped(limit: float | None) -> float | None:
        return limit if left is None else left if limit is None else min(limit, left)

    read = capped(limits.first_token_s)
    phase: Phase = "total" if left is not None and read == left else "first_token"
    connect = capped(limits.connect_s)
    return {"connect": connect, "read": read, "write": capped(limits.idle_s), "pool": read}, phase


def check_open(client: Any) -> None:
    """Refuse a client that was closed, ours or the caller's.

    Raises:
        DeepSeekError: it was.
    """
    if getattr(client, "is_closed", False):
        raise DeepSeekError("the client has been closed")


def refuse_inherited() -> NoReturn:
    """A fork has the parent's connections too, and two processes that write to one mix their requests.

    Raises:
        ConfigurationError: always.
    """
    raise ConfigurationError(
        "the http_client or transport of this client was used before the process forked: make a client in the child"
    )


def check_process(process: int) -> None:
    """Refuse to read in one process what another one has begun.

    Raises:
        StreamClosedError: this is the other one.
    """
    if process != os.getpid():
        raise StreamClosedError("the stream belongs to the process that opened it, and goes on there")


def headers_of(response: Any) -> dict[str, str]:
    """The headers of a response, names in lower case."""
    return {name.lower(): value for name, value in response.headers.items()}


def library_errors() -> tuple[type[Exception], ...]:
    """The failures of a request, in each of the two libraries that is loaded."""
    loaded = (sys.modules.get(name) for name in LIBRARIES)
    return tuple(module.RequestError for module in loaded if module is not None)


def translate(error: Exception, url: str, phase: Phase, deadline: float | None = None) -> DeepSeekError:
    """One of the library's failures as one of ours. By name: the two libraries have the same names."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "TimeoutException" in names and deadline is not None and time.monotonic() >= deadline:
        return late(url, "total")  # whichever wait it cut short
    for name in names & _PHASES.keys():
        return late(url, _PHASES[name])
    if "TimeoutException" in names:
        return late(url, phase)
    detail = str(error) or type(error).__name__
    if names & {"LocalProtocolError", "UnsupportedProtocol"}:
        return ConfigurationError(f"the request to {url} cannot be sent: {detail}")
    if "ConnectError" in names or "ProxyError" in names:
        if _is_tls(error):
            return TLSError(f"no secure connection to {url}: {detail}")
        return ConnectError(f"cannot reach {url}: {detail}. Is the server running, and is the base URL right?")
    return APIConnectionError(f"the connection to {url} broke: {detail}")


def _is_tls(error: BaseException | None) -> bool:
    """Whether TLS is what failed: the library says so by the cause alone."""
    while error is not None:
        if type(error).__name__.startswith("SSL"):
            return True
        error = error.__cause__ or error.__context__
    return False


_PHASES: dict[str, Phase] = {"ConnectTimeout": "connect", "PoolTimeout": "pool", "WriteTimeout": "write"}
_LATE: dict[Phase, str] = {
    "connect": "could not connect to {url} within timeout.connect_s",
    "pool": "no free connection for {url} within timeout.first_token_s",
    "write": "could not send the request to {url} in time",
    "first_token": "no data from {url} within timeout.first_token_s",
    "idle": "no data from {url} for timeout.idle_s",
    "total": "no complete answer from {url} within timeout.total_s",
}


class Answer:
    """A plain answer that is being read: its bytes, and until when more of them may come.

    Blank lines are a queue's sign of life and no answer, so they do not put off `first_token_s`.

    Args:
        request: what it answers, sent just now.
        deadline: of the whole call.
    """

    def __init__(self, request: HTTPRequest, deadline: float | None) -> None:
        self.content = bytearray()
        self._most = MAX_ANSWER_BYTES
        self._url = request.url
        self._total = deadline
        first_token_s = request.timeout.first_token_s
        self._first = None if first_token_s is None else time.monotonic() + first_token_s
        self._has_begun = False

    def begin(self, status: int, *, is_wanted: bool) -> None:
        """The head has come; less is read of an error, and of what is not `is_wanted`."""
        if not is_wanted or not 200 <= status < 300:
            self._most = MAX_REFUSAL_BYTES

    def limits(self) -> tuple[float | None, Phase]:
        """Until when the next bytes must come; without a deadline the library's own limit of a read is enough."""
        if self._total is None:
            return None, "first_token"
        if not self._has_begun and self._first is not None and self._first < self._total:
            return self._first, "first_token"
        return self._total, "total"

    def take(self, chunk: bytes) -> bool:
        """Keep the next bytes; tells whether more are wanted.

        Raises:
            FirstTokenTimeout: only blanks have come in time.
        """
        self.content += chunk
        self._has_begun = self._has_begun or not chunk.isspace()
        if not self._has_begun and self._first is not None and time.monotonic() > self._first:
            raise late(self._url, "first_token")
        return len(self.content) < self._most


def late(url: str, phase: Phase) -> APITimeoutError:
    """The failure of a limit that has passed."""
    return CLASS_OF_PHASE.get(phase, APITimeoutError)(_LATE[phase].format(url=url), phase=phase)


class ReadGuard:
    """Ends a blocking read at its deadline, by shutting the socket down from a thread of its own.

    The HTTP library fixes the read timeout of a body when the body begins, and a keep-alive comment re-arms it; a
    stream needs limits that change with each event. Costs one sleeping thread a stream, started with the first
    deadline; a read that comes in time costs a lock.

    Args:
        sock: the socket that the reads block on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.is_expired = False
        self._socket = sock
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._wakes_at = 0.0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def arm(self, deadline: float) -> None:
        """The read that follows must end by `deadline`, on the monotonic clock."""
        with self._changed:
            self._deadline = deadline
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="deepseek-read-guard", daemon=True)
                self._thread.start()
            elif deadline < self._wakes_at:
                self._changed.notify()

    def disarm(self) -> None:
        """The read has returned."""
        with self._changed:
            self._deadline = None

    def close(self, *, cut: bool) -> None:
        """Never touch the socket again: it may soon serve another request. `cut` ends a read that blocks on it now."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            if cut:
                self._shut_down()

    def _watch(self) -> None:
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                if self._deadline is not None and self._deadline <= now:
                    self.is_expired = True
                    self._shut_down()
                    return
                # Between reads there is no deadline; arm() wakes the thread for one that is sooner than this.
                self._wakes_at = self._deadline if self._deadline is not None else now + 60
                self._changed.wait(self._wakes_at - now)

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):
            # Of the plain class: ssl's own shutdown would pull the session from under the reader.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class HeadGuard:
    """Holds a blocking request to its deadline until the response's headers are there, also while they drip.

    It learns of the socket as the connection is made. On one that is used again, which has answered before, only the
    library's limit on each read holds until the headers are there.

    Args:
        deadline: of the whole call.
    """

    def __init__(self, deadline: float | None) -> None:
        self.guard: ReadGuard | None = None
        self._deadline = deadline

    @property
    def is_expired(self) -> bool:
        """Whether it has ended the request."""
        return self.guard is not None and self.guard.is_expired

    def extensions(self) -> dict[str, Any]:
        """What the request needs for it."""
        return {} if self._deadline is None else {"trace": self._trace}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        if kind is not None:
            self._let_go()

    def _trace(self, step: str, info: Mapping[str, Any]) -> None:
        """Told by the library of each step of the request."""
        if not step.endswith(("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")):
            return
        self._let_go()  # TLS has a socket of its own in the place of the plain one
        sock = info["return_value"].get_extra_info("socket")
        if sock is not None and self._deadline is not None:
            self.guard = ReadGuard(sock)
            self.guard.arm(self._deadline)

    def _let_go(self) -> None:
        if self.guard is not None:
            self.guard.close(cut=False)
