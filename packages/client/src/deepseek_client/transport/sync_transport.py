"""The blocking driver: does the effects of the core with an HTTP client's blocking calls."""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from deepseek_client.effects import (
    AskKey,
    CallTools,
    Close,
    Effect,
    Enter,
    Fetch,
    Flow,
    Open,
    Opened,
    Read,
    Reply,
    Sleep,
    ask_key,
    call_tool,
    is_wanted,
)
from deepseek_client.errors import APIConnectionError, DeepSeekError, Phase
from deepseek_client.middleware import WatchedBody
from deepseek_client.request import HTTPRequest
from deepseek_client.transport.library import (
    Answer,
    ReadGuard,
    build,
    check_open,
    check_process,
    headers_of,
    late,
    library_errors,
    make_client,
    refuse_inherited,
    timeouts_of,
    translate,
)

T = TypeVar("T")


class SyncTransport:
    """Does effects with blocking calls. Thread-safe, as the HTTP client is.

    Args:
        http_client: the caller's `httpx.Client` (or httpx2's), which stays the caller's to close; None makes one.
        transport: what the one that is made sends with; None is a pool of connections.
        trust_env: whether proxies of the environment apply to the one that is made.
    """

    def __init__(self, http_client: Any | None, transport: Any | None = None, *, trust_env: bool) -> None:
        self._is_ours = http_client is None
        self._can_be_made_again = http_client is None and transport is None
        self._trust_env = trust_env
        # Made before a call's clock starts: it takes a part of a second, the library's import with it.
        self._client: Any = http_client or make_client(transport, trust_env=trust_env)
        self._is_closed = False
        self._process: int | None = None
        self._inherited: list[Any] = []
        self._bodies = _Bodies()

    def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its result."""
        self._bodies.close_forgotten()
        try:
            effect = next(flow)
            while True:
                try:
                    answer = self._perform(effect)
                except APIConnectionError as failure:
                    effect = flow.throw(failure)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            return stop.value
        finally:
            flow.close()

    def close(self) -> None:
        """Close the connections, if the HTTP client is not the caller's."""
        self._bodies.close_forgotten()
        if self._is_ours:
            self._is_closed = True
            if self._process in (None, os.getpid()):  # else the connections are the parent's
                self._client.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("connections cannot be copied or pickled: pickle the client, which makes its own")

    def _perform(self, effect: Effect) -> object:
        match effect:
            case Read():
                return effect.body.read(effect.deadline, effect.phase)
            case Close():
                return effect.body.close()
            case Enter():
                return effect.limiter.enter(effect.wait_s)
            case Sleep():
                return time.sleep(effect.seconds)
            case CallTools():
                return [call_tool(request) for request in effect.requests]
            case AskKey():
                return ask_key(effect.provider)
            case Fetch():
                answer = Answer(effect.request, effect.deadline)
                return _read_reply(self._begin(effect), answer, is_wanted=True)
            case Open():
                answer = Answer(effect.request, effect.deadline)
                body = self._begin(effect)
                if is_wanted(effect, body.status, body.headers):
                    return Opened(body.status, body.headers, body, effect.place)
                return _read_reply(body, answer, is_wanted=False)

    def _begin(self, effect: Fetch | Open) -> "_SyncBody | WatchedBody":
        if not effect.middleware:
            return self._send(effect.request, effect.deadline)
        return WatchedBody(effect.middleware, effect.request, lambda request: self._send(request, effect.deadline))

    def _send(self, request: HTTPRequest, deadline: float | None) -> "_SyncBody":
        client = self._usable()
        timeouts, phase = timeouts_of(request, deadline)
        try:
            response = client.send(build(client, request, timeouts), stream=True, follow_redirects=False)
        except library_errors() as error:
            raise translate(error, request.url, phase, deadline) from error
        return _SyncBody(response, request.url, self._bodies)

    def _usable(self) -> Any:
        """The HTTP client, with connections of this process alone."""
        if self._is_closed:
            raise DeepSeekError("the client has been closed")
        process = os.getpid()
        if process != self._process:
            if self._process is not None:
                if not self._can_be_made_again:
                    refuse_inherited()
                self._inherited.append(self._client)  # kept: its end would say goodbye to the parent's servers
                self._client = make_client(None, trust_env=self._trust_env)
                self._bodies = _Bodies()
            self._process = process
        client = self._client
        check_open(client)
        return client


class _Bodies:
    """The responses of one client that are being read.

    They are held here, so that the garbage collector never ends one: the library's own generators would then take the
    pool's lock, wherever the collector happens to run, also in a thread that holds it.
    """

    def __init__(self) -> None:
        self.open: set[_SyncBody] = set()
        self.forgotten: deque[Callable[[], None]] = deque()

    def close_forgotten(self) -> None:
        """Let go of those whose streams were forgotten."""
        while self.forgotten:
            with contextlib.suppress(IndexError):  # another thread was faster
                self.forgotten.popleft()()


class _SyncBody:
    """A response that is being read."""

    def __init__(self, response: Any, url: str, bodies: _Bodies) -> None:
        self.status: int = response.status_code
        self.headers = headers_of(response)
        self._response = response
        self._url = url
        self._chunks = (
            response.iter_bytes()
            if "content-encoding" in self.headers or response.is_stream_consumed
            else response.iter_raw()
        )
        stream = response.extensions.get("network_stream")
        sock = stream.get_extra_info("socket") if stream is not None else None
        self._guard = ReadGuard(sock) if sock is not None else None
        self._is_reading = False
        self._process = os.getpid()
        self._bodies = bodies
        bodies.open.add(self)
        self.limits: tuple[float | None, Phase] = (None, "total")

    def read(self, deadline: float | None, phase: Phase) -> bytes:
        """The next bytes, `b""` at the end."""
        check_process(self._process)
        if deadline is not None and deadline <= time.monotonic():
            raise late(self._url, phase)
        guard = self._guard
        if guard is not None and deadline is not None:
            guard.arm(deadline)
        self._is_reading = True
        try:
            chunk: bytes = next(self._chunks, b"")
        except library_errors() as error:
            if guard is not None and guard.is_expired:
                raise late(self._url, phase) from error
            raise translate(error, self._url, phase) from error
        finally:
            self._is_reading = False
            if guard is not None:
                guard.disarm()
        if not chunk and guard is not None and guard.is_expired:
            raise late(self._url, phase)
        return chunk

    def chunks(self) -> Iterator[bytes]:
        """The body, each read within `limits`."""
        while chunk := self.read(*self.limits):
            yield chunk

    def close(self) -> None:
        """Release the connection: to the pool if the body was read to its end, else for good."""
        if self._process != os.getpid():
            return
        if self._guard is not None:
            self._guard.close(cut=self._is_reading)
        if not self._is_reading:  # else the thread that reads sees the cut, and the library closes there
            with contextlib.suppress(*library_errors()):
                self._response.close()
        self._bodies.open.discard(self)

    def abandon(self, close: Callable[[], None] | None = None) -> None:
        """Close from a finaliser, which may run in the midst of anything, such as the pool's own lock.

        So the socket is shut down at once, for the server to see, and the rest is left to the client's next call.

        Args:
            close: what to call then, if it is not the closing of this body alone.
        """
        if self._process != os.getpid():
            return
        if self._guard is None:  # no socket, no pool
            (close or self.close)()
            return
        self._guard.close(cut=True)
        self._bodies.forgotten.append(close or self.close)


def _read_reply(body: _SyncBody | WatchedBody, answer: Answer, *, is_wanted: bool) -> Reply:
    """The whole body, up to a limit in bytes, and of an error's less."""
    answer.begin(body.status, is_wanted=is_wanted)
    try:
        while chunk := body.read(*answer.limits()):
            if not answer.take(chunk):
                break
    finally:
        body.close()
    return Reply(body.status, body.headers, bytes(answer.content))
