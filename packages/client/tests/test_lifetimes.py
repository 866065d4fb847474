"""One client over several event loops, in many threads, at the hands of the garbage collector, and as a copy."""

import asyncio
import copy
import gc
import json
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import deepseek_client
from deepseek_client import AsyncDeepSeek, DeepSeek, Timeout, types
from deepseek_client.sse import encode_event
from deepseek_client.transport.library import library


def begun(kit):
    """A stream that never ends."""

    def handler(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.text_event("Hello"))))
        connection.until_closed()

    return handler


def num_open_files():
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def test_one_async_client_serves_many_event_loops_and_leaves_nothing_open_in_them(server, kit):
    """Nothing is closed by hand: an open socket would be a ResourceWarning, which fails the test."""
    server.script(kit.echo)
    client = AsyncDeepSeek(base_url=server.url)

    async def once():
        async with client.generate_stream("ab") as stream:
            letters = [letter async for letter in stream]
        return letters, (await client.generate("cd")).text

    assert asyncio.run(once()) == (["a", "b"], "cd")
    before = num_open_files()
    for _ in range(5):
        assert asyncio.run(once()) == (["a", "b"], "cd")
    assert len(client._transport._pools) == 1
    gc.collect()
    assert server.num_connections == 6
    assert num_open_files() <= before + 5  # of the server's threads, which see the ends in their own time


@pytest.mark.xfail(library().__name__ == "httpx2", reason="httpcore2's own generator is closed twice", strict=False)
def test_streams_that_are_forgotten_when_the_loop_ends_say_nothing(server, kit, caplog, capsys):
    """No "aclose(): asynchronous generator is already running", no task destroyed while it was pending."""
    server.script(begun(kit))
    client = AsyncDeepSeek(base_url=server.url)
    kept = []

    async def leave():
        stream = client.generate_stream("Hi")
        await anext(stream)
        kept.append(client.generate_stream("Hi"))
        await anext(kept[0])
        del stream
        async for _ in client.generate_stream("Hi"):
            break

    asyncio.run(leave())
    kept.clear()
    gc.collect()
    assert (caplog.messages, capsys.readouterr().err) == ([], "")


def test_a_client_that_is_dropped_lets_its_connections_go(server, kit):
    server.script(kit.echo)

    async def drop():
        client = AsyncDeepSeek(base_url=server.url)
        await client.generate("ab")
        del client
        gc.collect()
        await kit.until(server.disconnected.is_set)

    asyncio.run(drop())


@pytest.mark.parametrize("kind", ["threads", "tasks"])
async def test_many_users_of_one_client_get_their_own_answers(server, kit, kind):
    server.script(kit.echo)
    names = [f"user {number}" for number in range(24)]
    if kind == "threads":
        with DeepSeek(base_url=server.url, api_key=lambda: threading.current_thread().name) as client:

            def ask(name):
                return client.generate(name).text, "".join(client.generate_stream(name)), client.generate(name).text

            with ThreadPoolExecutor(12) as executor:
                answers = await asyncio.to_thread(lambda: list(executor.map(ask, names)))
    else:
        async with AsyncDeepSeek(base_url=server.url) as client:

            async def ask_async(name):
                text = (await client.generate(name)).text
                letters = [letter async for letter in client.generate_stream(name)]
                return text, "".join(letters), (await client.generate(name)).text

            answers = await asyncio.gather(*map(ask_async, names))
    assert answers == [(name, name, name) for name in names]
    assert server.num_connections <= 24


def test_a_stream_that_the_collector_finds_while_the_pool_is_locked_does_not_stop_the_program(server, kit):
    """The finaliser runs wherever the collector does, also inside the pool's own lock, in the thread that holds it."""
    server.script(begun(kit), kit.reply(kit.GENERATION))
    client = DeepSeek(base_url=server.url)
    stream = client.generate_stream("Hi")
    next(stream)
    holder = [stream]
    holder.append(holder)  # a cycle: only the collector ends it
    del stream

    def collect():
        nonlocal holder
        with client._transport._client._transport._pool._optional_thread_lock:
            del holder
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the finaliser waits for the lock that its own thread holds"
    assert server.disconnected.wait(30)
    assert client.generate("Hi").text == "Hello"
    assert client._transport._client._transport._pool._requests == []
    client.close()


def through(stream):
    """A generator of the caller's that reads the stream, from its second item on."""

    def pieces():
        with stream:
            yield "begun"
            yield from stream

    async def pieces_async():
        async with stream:
            yield "begun"
            async for piece in stream:
                yield piece

    return pieces_async() if hasattr(stream, "__anext__") else pieces()


@pytest.mark.parametrize("ending", ["nothing", "close", "an exception", "the end of a generator"])
async def test_a_stream_left_in_any_way_disconnects_and_gives_its_connection_back(server, connect, kit, ending):
    server.script(begun(kit))
    client = connect(max_concurrency=1)
    stream = client.generate_stream("Hi")
    assert await kit.take(stream) == "Hello"
    if ending == "close":
        await kit.settle(stream.close())
    elif ending == "an exception":
        with pytest.raises(ZeroDivisionError):
            async with kit.entered(stream):
                raise ZeroDivisionError
    elif ending == "the end of a generator":
        pieces = through(stream)
        assert await kit.take(pieces) == "begun"
        await kit.settle((getattr(pieces, "aclose", None) or pieces.close)())
    del stream
    gc.collect()
    await kit.until(server.disconnected.is_set)
    server.script(kit.reply(kit.GENERATION))
    assert (await kit.settle(client.generate("Hi"))).text == "Hello"


def pass_on(request, send):
    return send(request)


def give_key():
    return "dsk_from_a_function_1234"


def test_a_client_pickles_as_its_settings(server, kit, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_API_KEY", "dsk_of_the_environment_1")
    client = DeepSeek(
        base_url=server.url,
        timeout=Timeout(total_s=7),
        max_retries=5,
        default_headers={"x-a": "b"},
        middleware=[pass_on],
    )
    data = pickle.dumps(client)
    assert b"environment" not in data
    monkeypatch.setenv("DEEPSEEK_API_KEY", "dsk_of_another_process_2")
    with pickle.loads(data) as other:
        assert other.generate("Hi").text == "Hello"
        settings = other._settings
    assert (settings.timeout, settings.max_retries, settings.middleware) == (Timeout(total_s=7), 5, (pass_on,))
    assert server.request.headers["authorization"] == "Bearer dsk_of_another_process_2"
    assert server.request.headers["x-a"] == "b"


@pytest.mark.parametrize("cls", [DeepSeek, AsyncDeepSeek])
def test_a_key_that_was_an_argument_goes_with_the_client(cls):
    for options in ({"api_key": "dsk_argument_12345678"}, {"api_key": give_key}, {"max_concurrency": 3}):
        client = cls(base_url="http://h", **options)
        for other in (pickle.loads(pickle.dumps(client)), copy.deepcopy(client), copy.copy(client)):
            assert type(other) is cls
            assert other._settings == client._settings


def generate_with(client):
    with client:
        return client.generate("Hi").text


def test_a_client_works_in_a_process_that_was_started_anew(server):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply_async(generate_with, (DeepSeek(base_url=server.url),))
        assert result.get(120) == "Hello"


def test_what_is_bound_to_connections_says_that_it_cannot_be_pickled(server, kit):
    mine = library().Client()
    client = DeepSeek(base_url=server.url)
    server.script(begun(kit))
    stream = client.generate_stream("Hi")
    next(stream)
    things = {
        "make one there": DeepSeek(base_url=server.url, http_client=mine),
        "pickle the client": client.chat.completions,
        "its snapshot can": stream,
        "which makes its own": client._transport,
    }
    for message, thing in things.items():
        for act in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=message):
                act(thing)
    assert pickle.loads(pickle.dumps(stream.snapshot)).text == "Hello"
    stream.close()
    client.close()
    mine.close()


async def test_every_answer_of_a_call_pickles_and_copies(server, connect, kit):
    """Also what stands beside the body: the request's id, its cost, how often it was sent."""
    usage = {"usage": kit.USAGE}
    chunk = (
        kit.chat_event(
            "Hello", "stop", reasoning_content="hm", tool_calls=[{"index": 0, "id": "c", "function": {"name": "f"}}]
        )
        | usage
    )
    client = connect()
    server.script(kit.reply(kit.GENERATION, x_request_id="r-1"))
    answers = [await kit.settle(client.generate("Hi"))]
    server.script(kit.reply(kit.CHAT, x_request_id="r-1"))
    chat = client.chat.completions
    answers.append(await kit.settle(chat.create(messages=kit.MESSAGES)))
    answers.append(await kit.settle(chat.with_raw_response.create(messages=kit.MESSAGES)))
    choice = {"index": 0, "message": {"role": "assistant", "content": '{"value": [1]}'}, "finish_reason": "stop"}
    server.script(kit.reply(kit.CHAT | {"choices": [choice]}, x_request_id="r-1"))
    answers.append(await kit.settle(chat.parse(messages=kit.MESSAGES, response_model=list[int])))
    server.script(kit.events(chunk, x_request_id="r-1"))
    async with kit.entered(chat.stream(messages=kit.MESSAGES)) as stream:
        answers += await kit.collect(stream)
    answers.append(stream.snapshot)
    assert {type(answer).__name__ for answer in answers} >= {"Generation", "ChatCompletion", "RawResponse", "Finish"}
    for answer in answers:
        for again in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer)):
            assert type(again) is type(answer)
            if type(answer).__name__ == "RawResponse":
                assert (again.content, again.request_id) == (answer.content, "r-1")
            else:
                assert again == answer
                assert getattr(again, "request_id", "r-1") in ("r-1", None)


def test_every_type_of_the_contract_pickles():
    for name in types.__all__:
        cls = getattr(types, name)
        if isinstance(cls, type) and hasattr(cls, "model_construct"):
            value = cls.model_construct(extra_field=1)
            assert pickle.loads(pickle.dumps(value)) == value, name
    assert pickle.loads(pickle.dumps(deepseek_client.Timeout())) == Timeout()
