"""The one module that knows the HTTP library: two drivers that do the effects of the core over httpx.

A caller's own client may be httpx's or httpx2's (same API, another import name): nothing is used of it but its methods,
and exceptions are caught from whichever of the two is loaded.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import httpx

from deepseek_client.effects import (
    AskKey,
    CallTools,
    Close,
    Effect,
    Fetch,
    Flow,
    Open,
    Opened,
    Read,
    Reply,
    Sleep,
    is_wanted,
)
from deepseek_client.errors import (
    CLASS_OF_PHASE,
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    ConnectError,
    DeepSeekError,
    Phase,
    TLSError,
)
from deepseek_client.keys import ask_key, ask_key_async
from deepseek_client.middleware import AsyncWatchedBody, WatchedBody
from deepseek_client.read_guard import ReadGuard
from deepseek_client.request import HTTPRequest
from deepseek_client.tools.calling import call_tool, call_tool_async

T = TypeVar("T")

_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=30.0)
_MAX_REFUSAL_BYTES = 1024 * 1024
"""How much is read of an answer that is not the stream that was asked for."""


class SyncTransport:
    """Does effects with blocking calls. Thread-safe, as the HTTP client is.

    Args:
        http_client: the caller's `httpx.Client` (or httpx2's), which stays the caller's to close; None makes one.
        transport: what the one that is made sends with; None is a pool of connections.
        trust_env: whether proxies of the environment apply to the one that is made.
    """

    def __init__(self, http_client: Any | None, transport: Any | None = None, *, trust_env: bool) -> None:
        _check_one(http_client, transport)
        self._is_ours = http_client is None
        self._client: Any = http_client or httpx.Client(limits=_LIMITS, trust_env=trust_env, transport=transport)

    def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its result."""
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

    def close(self) -> None:
        """Close the connections, if the HTTP client is not the caller's."""
        if self._is_ours:
            self._client.close()

    def _perform(self, effect: Effect) -> object:
        match effect:
            case Read():
                return effect.body.read(effect.deadline, effect.phase)
            case Close():
                return effect.body.close()
            case Sleep():
                return time.sleep(effect.seconds)
            case CallTools():
                return [call_tool(request) for request in effect.requests]
            case AskKey():
                return ask_key(effect.provider)
            case Fetch():
                return _read_reply(self._begin(effect), effect.deadline, None)
            case Open():
                body = self._begin(effect)
                if is_wanted(effect, body.status, body.headers):
                    return Opened(body.status, body.headers, body)
                return _read_reply(body, effect.deadline, _MAX_REFUSAL_BYTES)

    def _begin(self, effect: Fetch | Open) -> "_SyncBody | WatchedBody":
        if not effect.middleware:
            return self._send(effect.request, effect.deadline)
        return WatchedBody(effect.middleware, effect.request, lambda request: self._send(request, effect.deadline))

    def _send(self, request: HTTPRequest, deadline: float | None) -> "_SyncBody":
        timeouts, phase = _timeouts(request, deadline)
        try:
            response = self._client.send(_build(self._client, request, timeouts), stream=True, follow_redirects=False)
        except _library_errors() as error:
            raise _translate(error, request.url, phase) from error
        return _SyncBody(response, request.url)


class _SyncBody:
    """A response that is being read."""

    def __init__(self, response: Any, url: str) -> None:
        self.status: int = response.status_code
        self.headers = _headers(response)
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
        self.limits: tuple[float | None, Phase] = (None, "total")

    def read(self, deadline: float | None, phase: Phase) -> bytes:
        """The next bytes, `b""` at the end."""
        if deadline is not None and deadline <= time.monotonic():
            raise _late(self._url, phase)
        guard = self._guard
        if guard is not None and deadline is not None:
            guard.arm(deadline)
        self._is_reading = True
        try:
            chunk: bytes = next(self._chunks, b"")
        except _library_errors() as error:
            if guard is not None and guard.is_expired:
                raise _late(self._url, phase) from error
            raise _translate(error, self._url, phase) from error
        finally:
            self._is_reading = False
            if guard is not None:
                guard.disarm()
        if not chunk and guard is not None and guard.is_expired:
            raise _late(self._url, phase)
        return chunk

    def chunks(self) -> Iterator[bytes]:
        """The body, each read within `limits`."""
        while chunk := self.read(*self.limits):
            yield chunk

    def close(self) -> None:
        """Release the connection: to the pool if the body was read to its end, else for good."""
        if self._guard is not None:
            self._guard.close(cut=self._is_reading)
        if not self._is_reading:  # else the thread that reads sees the cut, and the library closes there
            with contextlib.suppress(*_library_errors()):
                self._response.close()


class AsyncTransport:
    """Does effects with asyncio.

    A client of our own making has one pool of connections for each event loop, so that it survives several
    `asyncio.run`. Arguments as for SyncTransport.
    """

    def __init__(self, http_client: Any | None, transport: Any | None = None, *, trust_env: bool) -> None:
        _check_one(http_client, transport)
        self._client: Any | None = http_client
        self._httpx_transport = transport
        self._trust_env = trust_env
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self._is_closed = False

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its result."""
        try:
            effect = next(flow)
            while True:
                try:
                    answer = await self._perform(effect)
                except APIConnectionError as failure:
                    effect = flow.throw(failure)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            return stop.value

    async def close(self) -> None:
        """Close the connections of the running loop, if the HTTP client is not the caller's."""
        self._is_closed = True
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    async def _perform(self, effect: Effect) -> object:
        match effect:
            case Read():
                return await effect.body.read(effect.deadline, effect.phase)
            case Close():
                return await effect.body.close()
            case Sleep():
                return await asyncio.sleep(effect.seconds)
            case CallTools():
                return await asyncio.gather(*map(call_tool_async, effect.requests))
            case AskKey():
                return await ask_key_async(effect.provider)
            case Fetch():
                return await _read_reply_async(await self._begin(effect), effect.deadline, None)
            case Open():
                body = await self._begin(effect)
                if is_wanted(effect, body.status, body.headers):
                    return Opened(body.status, body.headers, body)
                return await _read_reply_async(body, effect.deadline, _MAX_REFUSAL_BYTES)

    async def _begin(self, effect: Fetch | Open) -> "_AsyncBody | AsyncWatchedBody":
        if not effect.middleware:
            return await self._send(effect.request, effect.deadline)
        return await AsyncWatchedBody().open(
            effect.middleware, effect.request, lambda request: self._send(request, effect.deadline)
        )

    async def _send(self, request: HTTPRequest, deadline: float | None) -> "_AsyncBody":
        timeouts, phase = _timeouts(request, deadline)
        client = self._pool()
        try:
            response = await client.send(_build(client, request, timeouts), stream=True, follow_redirects=False)
        except _library_errors() as error:
            raise _translate(error, request.url, phase) from error
        return _AsyncBody(response, request.url)

    def _pool(self) -> Any:
        if self._client is not None:
            return self._client
        if self._is_closed:
            raise DeepSeekError("the client has been closed")
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            pool = self._pools[loop] = httpx.AsyncClient(
                limits=_LIMITS, trust_env=self._trust_env, transport=self._httpx_transport
            )
        return pool


class _AsyncBody:
    """A response that is being read."""

    def __init__(self, response: Any, url: str) -> None:
        self.status: int = response.status_code
        self.headers = _headers(response)
        self._response = response
        self._url = url
        self._chunks = (
            response.aiter_bytes()
            if "content-encoding" in self.headers or response.is_stream_consumed
            else response.aiter_raw()
        )
        self._loop = asyncio.get_running_loop()
        self.limits: tuple[float | None, Phase] = (None, "total")

    async def read(self, deadline: float | None, phase: Phase) -> bytes:
        """The next bytes, `b""` at the end."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise _late(self._url, phase)
        try:
            async with asyncio.timeout(left):
                return await anext(self._chunks, b"")
        except TimeoutError as error:
            raise _late(self._url, phase) from error
        except _library_errors() as error:
            raise _translate(error, self._url, phase) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, each read within `limits`."""
        while chunk := await self.read(*self.limits):
            yield chunk

    async def close(self) -> None:
        """Release the connection: to the pool if the body was read to its end, else for good."""
        with contextlib.suppress(*_library_errors()):
            with contextlib.suppress(RuntimeError):  # another task is reading: closing the response ends its read
                await self._chunks.aclose()
            await self._response.aclose()

    def abandon(self) -> None:
        """Close from a finaliser, which may run in any thread: hand it to the loop that the response belongs to."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self.close()))


def _read_reply(body: _SyncBody | WatchedBody, deadline: float | None, limit: int | None) -> Reply:
    """The whole body, up to a limit in bytes."""
    content = bytearray()
    try:
        while chunk := body.read(deadline, "total"):
            content += chunk
            if limit is not None and len(content) >= limit:
                break
    finally:
        body.close()
    return Reply(body.status, body.headers, bytes(content))


async def _read_reply_async(body: _AsyncBody | AsyncWatchedBody, deadline: float | None, limit: int | None) -> Reply:
    """The whole body, up to a limit in bytes."""
    content = bytearray()
    try:
        while chunk := await body.read(deadline, "total"):
            content += chunk
            if limit is not None and len(content) >= limit:
                break
    finally:
        await body.close()
    return Reply(body.status, body.headers, bytes(content))


def _check_one(http_client: Any | None, transport: Any | None) -> None:
    if http_client is not None and transport is not None:
        raise ConfigurationError("http_client and transport: name one, since a client has a transport of its own")


def _build(client: Any, request: HTTPRequest, timeouts: dict[str, float | None]) -> Any:
    return client.build_request(
        request.method,
        request.url,
        headers=dict(request.headers),
        content=request.body,
        extensions={"timeout": timeouts},
    )


def _timeouts(request: HTTPRequest, deadline: float | None) -> tuple[dict[str, float | None], Phase]:
    """The library's timeouts until the response begins, and which of our limits the wait for it stands for."""
    limits = request.timeout
    left = None if deadline is None else max(deadline - time.monotonic(), 0.001)

    def capped(limit: float | None) -> float | None:
        return limit if left is None else left if limit is None else min(limit, left)

    read = capped(limits.first_token_s)
    phase: Phase = "total" if left is not None and read == left else "first_token"
    connect = capped(limits.connect_s)
    return {"connect": connect, "read": read, "write": capped(limits.idle_s), "pool": read}, phase


def _headers(response: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _library_errors() -> tuple[type[Exception], ...]:
    """The failures of a request, in each of the two libraries that is loaded."""
    loaded = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return tuple(library.RequestError for library in loaded if library is not None)


def _translate(error: Exception, url: str, phase: Phase) -> DeepSeekError:
    """One of the library's failures as one of ours. By name: the two libraries have the same names."""
    names = {cls.__name__ for cls in type(error).__mro__}
    for name in names & _PHASES.keys():
        return _late(url, _PHASES[name])
    if "TimeoutException" in names:
        return _late(url, phase)
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


def _late(url: str, phase: Phase) -> APITimeoutError:
    return CLASS_OF_PHASE.get(phase, APITimeoutError)(_LATE[phase].format(url=url), phase=phase)
