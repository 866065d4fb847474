"""`max_concurrency`: how many requests are in flight, who holds a place, and that none is lost."""

import asyncio
import gc
import os
import threading

import pytest

from deepseek_client import AsyncDeepSeek, errors
from deepseek_client.core import Core
from deepseek_client.effects import Enter, Fetch, Reply, Sleep
from deepseek_client.exchange import Exchange
from deepseek_client.pacing import Limiter
from deepseek_client.settings import Timeout, read_settings
from deepseek_client.sse import encode_event
from deepseek_client.testing import answer, cut


def ask(client, **params):
    """A call of either client, as something to be awaited."""
    if isinstance(client, AsyncDeepSeek):
        return client.generate("Hi", **params)
    return asyncio.to_thread(client.generate, "Hi", **params)


def endless(connection):
    connection.head()
    connection.chunk(encode_event('{"id": "g", "text": "Hel"}'))
    connection.until_closed()


async def assert_full(client):
    with pytest.raises(errors.DeadlineExceeded, match=r"max_concurrency=1 requests are in flight.*total_s") as caught:
        await ask(client, timeout=0.05)
    assert (caught.value.phase, caught.value.retries_taken) == ("total", 0)
    assert caught.value.elapsed >= 0.05


async def test_no_more_requests_are_in_flight_than_asked_for(server, connect, kit):
    counting, in_flight, most = threading.Lock(), 0, 0
    pairs = threading.Barrier(2)  # each answer waits until two are in flight

    def counted(connection):
        nonlocal in_flight, most
        with counting:
            in_flight += 1
            most = max(most, in_flight)
        pairs.wait(30)
        with counting:
            in_flight -= 1
        kit.reply(kit.GENERATION)(connection)

    server.script(counted)
    client = connect(max_concurrency=2)
    await asyncio.gather(*(ask(client) for _ in range(12)))
    assert (most, len(server.requests)) == (2, 12)


async def test_a_wait_for_a_place_ends_with_the_limit_that_it_counts_towards(server, connect, kit):
    server.script(endless, answer())
    told = []
    client = connect(max_concurrency=1, on_retry=told.append)
    async with kit.entered(client.generate_stream("Hi")) as stream:
        await kit.take(stream)
        await assert_full(client)
        with pytest.raises(errors.PoolTimeout, match=r"in flight.*first_token_s") as caught:
            await ask(client, timeout=Timeout(first_token_s=0.05))
        assert caught.value.phase == "pool"
        with pytest.raises(errors.PoolTimeout):
            await kit.collect(client.generate_stream("Hi", timeout=Timeout(first_token_s=0.05)))
    assert (await ask(client)).text == "Hello"
    assert (len(server.requests), told) == (2, [])


@pytest.mark.parametrize("way", ["read", "close", "cancel", "leave", "forget", "break", "late"])
async def test_a_stream_has_its_place_until_it_is_over(server, connect, kit, way):
    begun = [encode_event('{"id": "g", "text": "Hel"}')]
    first = {
        "read": kit.events(*begun, kit.text_event("lo", "stop")),
        "break": cut(kit.events(*begun, kit.text_event("lo", "stop")), after_bytes=len(begun[0]) + 3),
    }.get(way, endless)
    server.script(first, answer())
    client = connect(max_concurrency=1)
    stream = client.generate_stream("Hi", timeout=Timeout(idle_s=0.05 if way == "late" else 120))
    assert await kit.take(stream) == "Hel"
    await assert_full(client)
    if way == "read":
        assert await kit.collect(stream) == ["lo"]
    elif way in ("break", "late"):
        with pytest.raises(errors.StreamTruncatedError if way == "break" else errors.IdleTimeout):
            await kit.collect(stream)
    elif way == "leave":
        async with kit.entered(stream):
            pass
    elif way == "forget":
        del stream
        gc.collect()
    else:
        await kit.settle(stream.close() if way == "close" else stream.cancel())
    assert (await ask(client)).text == "Hello"


async def test_refusals_failures_and_raw_answers_leave_their_places(server, connect, kit):
    client = connect(max_concurrency=1, max_retries=0)
    server.script(kit.reply({}, 400), kit.reply({}, 401), kit.reply(b""), cut(answer(), after_bytes=3), answer())
    with pytest.raises(errors.BadRequestError):
        await ask(client)
    with pytest.raises(errors.AuthenticationError):
        await kit.collect(client.generate_stream("Hi"))
    with pytest.raises(errors.EmptyResponseError):
        await ask(client)
    with pytest.raises(errors.APIConnectionError):
        await ask(client)
    for _ in range(2):
        async with kit.entered(client.with_streaming_response.generate("Hi")):
            await assert_full(client)
        async with kit.entered(client.with_streaming_response.generate("Hi")) as response:
            assert (await kit.settle(response.parse())).text == "Hello"
    for _ in range(2):
        call = client.chat.completions.with_streaming_response.create(messages=kit.MESSAGES, stream=True)
        async with kit.entered(call) as response:
            stream = await kit.settle(response.parse())
            await kit.take(stream)
    assert (await ask(client)).text == "Hello"


async def test_copies_share_the_places_unless_they_name_their_own(server, connect, kit):
    server.script(endless, answer())
    client = connect(max_concurrency=1)
    async with kit.entered(client.with_options(timeout=60).generate_stream("Hi")) as stream:
        await kit.take(stream)
        await assert_full(client)
        await assert_full(client.with_options(max_retries=5))
        for own in (3, None):
            assert (await ask(client.with_options(max_concurrency=own))).text == "Hello"


async def test_who_is_cancelled_while_waiting_takes_no_place(server, kit):
    server.script(endless, answer())
    async with AsyncDeepSeek(base_url=server.url, max_concurrency=1) as client:
        async with client.generate_stream("Hi") as stream:
            await anext(stream)
            waiting = [asyncio.create_task(client.generate("Hi")) for _ in range(3)]
            await asyncio.sleep(0)
            for task in waiting[:2]:
                task.cancel()
            await asyncio.gather(*waiting[:2], return_exceptions=True)
        assert (await waiting[2]).text == "Hello"
        assert len(server.requests) == 2


async def test_a_task_cancelled_at_each_of_its_steps_loses_no_place(server, kit):
    server.script(answer("One two three"))
    async with AsyncDeepSeek(base_url=server.url, max_concurrency=1) as client:

        async def read():
            async with client.generate_stream("Hi") as stream:
                return [text async for text in stream]

        for num_steps in range(40):
            task = asyncio.create_task(read() if num_steps % 2 else client.generate("Hi"))
            for _ in range(num_steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert (await client.generate("Hi")).text == "One two three"


async def test_a_cancelled_read_leaves_its_place_though_the_stream_is_kept(server, kit):
    server.script(endless, answer())
    async with AsyncDeepSeek(base_url=server.url, max_concurrency=1) as client:
        stream = client.generate_stream("Hi")
        await anext(stream)
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert (await client.generate("Hi")).text == "Hello"
        await stream.close()


async def test_a_place_that_was_handed_over_as_its_taker_was_cancelled_goes_to_the_next():
    limiter = Limiter(1)
    first = await limiter.enter_async(None)
    waiting = [asyncio.create_task(limiter.enter_async(None)) for _ in range(2)]
    await asyncio.sleep(0)
    first.leave()
    first.leave()  # once is enough
    asyncio.get_running_loop().call_soon(waiting[0].cancel)  # after the place was handed over
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    async with asyncio.timeout(30):
        second = await waiting[1]
    assert await limiter.enter_async(0) is None
    del second
    waiting.clear()
    async with asyncio.timeout(30):
        assert await limiter.enter_async(None) is not None


def test_each_event_loop_has_places_of_its_own(server, kit):
    server.script(endless, answer())
    client = AsyncDeepSeek(base_url=server.url, max_concurrency=1)
    kept = []

    async def once():
        if not kept:  # a loop that ends with a place taken
            kept.append(client.generate_stream("Hi"))
            await anext(kept[0])
        else:
            kept.append(await asyncio.gather(client.generate("Hi"), client.generate("Hi")))

    asyncio.run(once())
    asyncio.run(once())
    assert [str(text) for text in kept[1]] == ["Hello", "Hello"]


def test_a_forked_process_has_all_places(monkeypatch):
    limiter = Limiter(1)
    held = limiter.enter(0)
    assert limiter.enter(0) is None
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    child_s = limiter.enter(0)
    assert child_s is not None
    held.leave()
    assert limiter.enter(0) is None


def test_a_place_is_free_while_a_retry_waits():
    core = Core(Exchange(read_settings(base_url="http://h", max_concurrency=1), chance=lambda: 0.5))
    limiter = core.exchange.limiter
    flow = core.generate("Hi", 5, {})
    assert next(flow) == Enter(limiter, 630.0)
    assert isinstance(flow.send(limiter.enter(0)), Fetch)
    assert limiter.enter(0) is None
    assert flow.send(Reply(503, {}, b"")) == Sleep(0.25)
    place = limiter.enter(0)
    assert place is not None
    assert isinstance(flow.send(None), Enter)
    place.leave()
    flow.send(limiter.enter(0))
    flow.close()
    assert limiter.enter(0) is not None


@pytest.mark.parametrize("most", [0, -1])
def test_a_limit_that_lets_nothing_through_is_refused(most):
    with pytest.raises(errors.ConfigurationError, match=f"max_concurrency={most} must be 1 or more"):
        AsyncDeepSeek(max_concurrency=most)
