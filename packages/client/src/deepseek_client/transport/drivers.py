"""The two drivers: they do the effects of the core with an HTTP client's blocking calls, or with its coroutines."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
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
    Sleep,
    ask_key,
    ask_key_async,
    call_tool,
    call_tool_async,
    is_wanted,
)
from deepseek_client.errors import APIConnectionError, DeepSeekError
from deepseek_client.middleware import AsyncWatchedBody, WatchedBody
from deepseek_client.request import HTTPRequest
from deepseek_client.tidy import Tidy
from deepseek_client.transport.bodies import AsyncBody, Bodies, SyncBody, read_reply, read_reply_async
from deepseek_client.transport.library import (
    Answer,
    HeadGuard,
    build,
    check_open,
    late,
    library,
    library_errors,
    make_async_client,
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
        self._bodies = Bodies()

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
                return read_reply(self._begin(effect), answer, is_wanted=True)
            case Open():
                answer = Answer(effect.request, effect.deadline)
                body = self._begin(effect)
                if is_wanted(effect, body.status, body.headers):
                    return Opened(body.status, body.headers, body, effect.place)
                return read_reply(body, answer, is_wanted=False)

    def _begin(self, effect: Fetch | Open) -> "SyncBody | WatchedBody":
        if not effect.middleware:
            return self._send(effect.request, effect.deadline)
        return WatchedBody(effect.middleware, effect.request, lambda request: self._send(request, effect.deadline))

    def _send(self, request: HTTPRequest, deadline: float | None) -> "SyncBody":
        client = self._usable()
        timeouts, phase = timeouts_of(request, deadline)
        with HeadGuard(deadline) as head:
            sent = build(client, request, timeout=timeouts, **head.extensions())
            try:
                response = client.send(sent, stream=True, follow_redirects=False)
            except library_errors() as error:
                if head.is_expired:
                    raise late(request.url, "total") from error
                raise translate(error, request.url, phase, deadline) from error
        return SyncBody(response, request.url, self._bodies, head.guard)

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
                self._bodies = Bodies()
            self._process = process
        client = self._client
        check_open(client)
        return client


class AsyncTransport:
    """Does effects with asyncio.

    A client of our own making has one pool of connections for each event loop, so that it survives several
    `asyncio.run`; a pool is closed with its loop. Arguments as for SyncTransport.
    """

    def __init__(self, http_client: Any | None, transport: Any | None = None, *, trust_env: bool) -> None:
        if http_client is None:
            library()  # loaded here, before a call's clock starts: it takes a part of a second
        self._client: Any | None = http_client
        self._httpx_transport = transport
        self._trust_env = trust_env
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}
        self._is_closed = False
        self._process: int | None = None
        self._inherited: list[Any] = []

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
        finally:
            flow.close()

    async def close(self) -> None:
        """Close the connections of the running loop, if the HTTP client is not the caller's."""
        self._is_closed = True
        if self._process == os.getpid():  # else the connections are the parent's
            pool = self._pools.pop(asyncio.get_running_loop(), None)
            if pool is not None:
                await Tidy(pool.keeper.aclose(), None)

    def __reduce__(self) -> NoReturn:
        raise TypeError("connections cannot be copied or pickled: pickle the client, which makes its own")

    async def _perform(self, effect: Effect) -> object:
        match effect:
            case Read():
                return await effect.body.read(effect.deadline, effect.phase)
            case Close():
                return await effect.body.close()
            case Enter():
                return await effect.limiter.enter_async(effect.wait_s)
            case Sleep():
                return await asyncio.sleep(effect.seconds)
            case CallTools():
                return await asyncio.gather(*map(call_tool_async, effect.requests))
            case AskKey():
                return await ask_key_async(effect.provider)
            case Fetch():
                answer = Answer(effect.request, effect.deadline)
                return await read_reply_async(await self._begin(effect), answer, is_wanted=True)
            case Open():
                answer = Answer(effect.request, effect.deadline)
                body = await self._begin(effect)
                if is_wanted(effect, body.status, body.headers):
                    return Opened(body.status, body.headers, body, effect.place)
                return await read_reply_async(body, answer, is_wanted=False)

    async def _begin(self, effect: Fetch | Open) -> "AsyncBody | AsyncWatchedBody":
        if not effect.middleware:
            return await self._send(effect.request, effect.deadline)
        return await AsyncWatchedBody().open(
            effect.middleware, effect.request, lambda request: self._send(request, effect.deadline)
        )

    async def _send(self, request: HTTPRequest, deadline: float | None) -> "AsyncBody":
        timeouts, phase = timeouts_of(request, deadline)
        client = await self._usable()
        sending = client.send(build(client, request, timeout=timeouts), stream=True, follow_redirects=False)
        limit = asyncio.timeout(None if deadline is None else deadline - time.monotonic())
        try:
            async with limit:
                response = await Tidy[Any](sending, lambda response: response.aclose())
        except TimeoutError as error:  # each part, such as headers that drip, came in its own time
            if not limit.expired():
                raise  # an app's own, in this process
            raise late(request.url, "total") from error
        except library_errors() as error:
            raise translate(error, request.url, phase, deadline) from error
        return AsyncBody(response, request.url)

    async def _usable(self) -> Any:
        """The HTTP client, with connections of this process and this loop alone."""
        if self._is_closed and self._client is None:
            raise DeepSeekError("the client has been closed")
        process = os.getpid()
        if process != self._process:
            if self._process is not None:
                if (self._client, self._httpx_transport) != (None, None):
                    refuse_inherited()
                self._inherited.append(self._pools)
                self._pools = {}
            self._process = process
        client = self._client or await self._pool()
        check_open(client)
        return client

    async def _pool(self) -> Any:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None or pool.client.is_closed:
            self._pools = {other: kept for other, kept in self._pools.items() if not other.is_closed()}
            client = make_async_client(self._httpx_transport, trust_env=self._trust_env)
            pool = self._pools[loop] = _Pool(client, _closed_with_the_loop(client))
            await anext(pool.keeper)  # does not wait
        return pool.client


@dataclass(frozen=True, slots=True)
class _Pool:
    """The HTTP client of one event loop, and the generator whose end closes it."""

    client: Any
    keeper: AsyncGenerator[None, None]


async def _closed_with_the_loop(client: Any) -> AsyncGenerator[None, None]:
    """Waits until it is closed: by us, by `asyncio.run` at its end, or by the loop when nobody holds it any more."""
    try:
        yield
    finally:
        await client.aclose()
