"""A task that is cancelled at any of its awaits leaves no connection, no task, and a client that works.

Each call is run again and again, cancelled at its first await, its second, and so on until it ends by itself: waiting
for the key, connecting, sending, waiting for the head, between two chunks, before a retry, while closing.
"""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any

import anyio
import pytest

from deepseek_client import AsyncDeepSeek
from deepseek_client.sse import DONE, KEEP_ALIVE, encode_event


class CancelledAt:
    """Awaits something, whose task is cancelled as it comes to wait for the numbers given, counted from 1."""

    def __init__(
        self, work: Awaitable[Any], numbers: Iterable[int], cancel: Callable[[], object] | None = None
    ) -> None:
        self._work = work
        self._numbers = set(numbers)
        self._cancel = cancel or (lambda: asyncio.current_task().cancel())
        self.num_waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        resume: Callable[[], Any] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                waits_for = resume()
            except StopIteration as stop:
                return stop.value
            self.num_waits += 1
            if self.num_waits in self._numbers:
                self._cancel()
            try:
                value = yield waits_for
            except BaseException as error:
                resume = lambda error=error: steps.throw(error)  # noqa: E731
            else:
                resume = lambda value=value: steps.send(value)  # noqa: E731


def connections_of(client: AsyncDeepSeek) -> list[Any]:
    """Of the client's pool in this loop: those that are not at rest."""
    pool = client._transport._pools.get(asyncio.get_running_loop())
    if pool is None:
        return []
    inner = pool.client._transport._pool
    busy = [connection for connection in inner.connections if not connection.is_idle() or connection.is_closed()]
    return [*busy, *inner._requests]


async def plain(client: AsyncDeepSeek) -> None:
    await client.generate("Hi")


async def whole_stream(client: AsyncDeepSeek) -> None:
    async with client.generate_stream("Hi") as stream:
        async for _ in stream:
            pass


async def bare_stream(client: AsyncDeepSeek) -> None:
    async for _ in client.generate_stream("Hi"):
        pass


async def left_early(client: AsyncDeepSeek) -> None:
    async with client.generate_stream("Hi") as stream:
        await anext(stream)


async def closed_by_hand(client: AsyncDeepSeek) -> None:
    stream = client.generate_stream("Hi")
    try:
        await anext(stream)
    finally:
        await stream.close()


async def raw_bytes(client: AsyncDeepSeek) -> None:
    async with client.chat.completions.with_streaming_response.create(
        messages=[{"role": "user", "content": "Hi"}], model="m"
    ) as response:
        async for _ in response.iter_bytes():
            pass


async def tee(client: AsyncDeepSeek) -> None:
    async with client.generate_stream("Hi") as stream:
        left, right = stream.tee()
        await asyncio.gather(*(branch.__anext__() for branch in (left, right)))


def slow_stream(kit: Any) -> Callable[[Any], None]:
    def handler(connection: Any) -> None:
        connection.head()
        for word in ("Hel", "lo"):
            connection.chunk(KEEP_ALIVE)
            connection.chunk(encode_event(json.dumps(kit.text_event(word))))
        connection.chunk(encode_event(json.dumps(kit.text_event("", "stop"))) + DONE)
        connection.end()

    return handler


CALLS = {
    "a plain call": (plain, False),
    "a whole stream": (whole_stream, True),
    "a stream without with": (bare_stream, True),
    "a stream left early": (left_early, True),
    "a stream closed by hand": (closed_by_hand, True),
    "raw bytes": (raw_bytes, False),
    "tee": (tee, True),
}


async def ask_key() -> str:
    await asyncio.sleep(0)
    return "dsk_test_secretsecret1234"


async def pass_on(request: Any, send: Any) -> Any:
    await asyncio.sleep(0)
    response = await send(request)
    await asyncio.sleep(0)
    return response


@pytest.mark.parametrize("times", [1, 3], ids=["once", "again and again"])
@pytest.mark.parametrize("middleware", [(), (pass_on,)], ids=["bare", "middleware"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_cancelled_at_any_await_leaves_nothing_behind(server, kit, name, middleware, times):
    call, is_stream = CALLS[name]
    answer = slow_stream(kit) if is_stream else kit.reply(kit.CHAT if call is raw_bytes else kit.GENERATION)
    busy = kit.reply({}, 503, retry_after="0.001")
    number, cancelled = 0, 0
    async with AsyncDeepSeek(base_url=server.url, api_key=ask_key, middleware=middleware) as client:
        while True:
            number += 1
            server.script(busy, answer)
            for _ in range(20):  # retries that were cancelled have used up the client's budget
                client._core.exchange.budget.give_back()
            work = CancelledAt(call(client), range(number, number + times))
            cancelled += await was_cancelled(as_coroutine(work))
            await nothing_is_left(kit, client)
            if work.num_waits < number:
                break
        server.script(kit.reply(kit.GENERATION))
        assert (await client.generate("Hi")).text == "Hello"
    assert cancelled >= 4  # httpx2 waits less often than httpx, and what is sent together is read together


@pytest.mark.parametrize("name", CALLS)
async def test_a_scope_of_anyio_cancelled_at_any_await_leaves_nothing_behind(server, kit, name):
    """As web frameworks cancel what they serve."""
    call, is_stream = CALLS[name]
    answer = slow_stream(kit) if is_stream else kit.reply(kit.CHAT if call is raw_bytes else kit.GENERATION)
    number, cancelled = 0, 0
    async with AsyncDeepSeek(base_url=server.url, api_key=ask_key) as client:
        while True:
            number += 1
            server.script(answer)
            with anyio.CancelScope() as scope:
                work = CancelledAt(call(client), {number}, scope.cancel)
                await work
            cancelled += scope.cancelled_caught
            await nothing_is_left(kit, client)
            if work.num_waits < number:
                break
    assert cancelled >= 5


async def test_closing_a_client_is_done_also_when_it_is_cancelled(server, kit):
    async def use() -> None:
        async with AsyncDeepSeek(base_url=server.url) as client:
            await client.generate("Hi")

    number = 0
    while True:
        number += 1
        work = CancelledAt(use(), {number})
        await was_cancelled(as_coroutine(work))
        if work.num_waits < number:
            break
    gc.collect()  # a connection left open would complain
    assert number > 3


async def test_a_timeout_of_asyncio_is_one_and_not_a_cancellation(server, kit):
    server.script(lambda connection: connection.until_closed())
    async with AsyncDeepSeek(base_url=server.url) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.generate("Hi")
        assert asyncio.current_task().cancelling() == 0
        await nothing_is_left(kit, client)
        await kit.until(server.disconnected.is_set)


async def as_coroutine(work: CancelledAt) -> Any:
    return await work


async def was_cancelled(work: Coroutine[Any, Any, Any]) -> bool:
    task = asyncio.create_task(work)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return task.cancelled()


async def nothing_is_left(kit: Any, client: AsyncDeepSeek) -> None:
    await kit.until(lambda: not connections_of(client))
    await kit.until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
