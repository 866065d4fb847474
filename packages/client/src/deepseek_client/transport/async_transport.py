"""The driver for asyncio: does the effects of the core with an HTTP client's coroutines."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
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
    Reply,
    Sleep,
    ask_key_async,
    call_tool_async,
    is_wanted,
)
from deepseek_client.errors import APIConnectionError, DeepSeekError, Phase
from deepseek_client.middleware import AsyncWatchedBody
from deepseek_client.request import HTTPRequest
from deepseek_client.tidy import Tidy, close_later
from deepseek_client.transport.library import (
    Answer,
    build,
    check_open,
    check_process,
    headers_of,
    late,
    library,
    library_errors,
    make_async_client,
    refuse_inherited,
    timeouts_of,
    translate,
)

T = TypeVar("T")


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
                return await _read_reply_async(await self._begin(effect), answer, is_wanted=True)
            case Open():
                answer = Answer(effect.request, effect.deadline)
                body = await self._begin(effect)
                if is_wanted(effect, body.status, body.headers):
                    return Opened(body.status, body.headers, body, effect.place)
                return await _read_reply_async(body, answer, is_wanted=False)

    async def _begin(self, effect: Fetch | Open) -> "_AsyncBody | AsyncWatchedBody":
        if not effect.middleware:
            return await self._send(effect.request, effect.deadline)
        return await AsyncWatchedBody().open(
            effect.middleware, effect.request, lambda request: self._send(request, effect.deadline)
        )

    async def _send(self, request: HTTPRequest, deadline: float | None) -> "_AsyncBody":
        timeouts, phase = timeouts_of(request, deadline)
        client = await self._usable()
        sending = client.send(build(client, request, timeouts), stream=True, follow_redirects=False)
        try:
            response = await Tidy[Any](sending, lambda response: response.aclose())
        except library_errors() as error:
            raise translate(error, request.url, phase, deadline) from error
        return _AsyncBody(response, request.url)

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


class _AsyncBody:
    """A response that is being read."""

    def __init__(self, response: Any, url: str) -> None:
        self.status: int = response.status_code
        self.headers = headers_of(response)
        self._response = response
        self._url = url
        self._chunks = (
            response.aiter_bytes()
            if "content-encoding" in self.headers or response.is_stream_consumed
            else response.aiter_raw()
        )
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self.limits: tuple[float | None, Phase] = (None, "total")

    async def read(self, deadline: float | None, phase: Phase) -> bytes:
        """The next bytes, `b""` at the end."""
        check_process(self._process)
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise late(self._url, phase)
        try:
            async with asyncio.timeout(left):
                return await Tidy[bytes](anext(self._chunks, b""), lambda _chunk: self._close())
        except TimeoutError as error:
            raise late(self._url, phase) from error
        except library_errors() as error:
            raise translate(error, self._url, phase) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, each read within `limits`."""
        while chunk := await self.read(*self.limits):
            yield chunk

    async def close(self) -> None:
        """Release the connection: to the pool if the body was read to its end, else for good."""
        await Tidy(self._close(), None)

    async def _close(self) -> None:
        with contextlib.suppress(*library_errors()):
            with contextlib.suppress(RuntimeError):  # another task is reading: closing the response ends its read
                await self._chunks.aclose()
            await self._response.aclose()

    def abandon(self) -> None:
        """Close from a finaliser, which may run in any thread."""
        if self._process == os.getpid():
            close_later(self._loop, self.close)


async def _read_reply_async(body: _AsyncBody | AsyncWatchedBody, answer: Answer, *, is_wanted: bool) -> Reply:
    """The whole body, up to a limit in bytes, and of an error's less."""
    answer.begin(body.status, is_wanted=is_wanted)
    try:
        while chunk := await body.read(*answer.limits()):
            if not answer.take(chunk):
                break
    finally:
        await body.close()
    return Reply(body.status, body.headers, bytes(answer.content))
