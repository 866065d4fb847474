"""A client before and after `os.fork`: no connection of one process is touched by the other."""

import asyncio
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from deepseek_client import AsyncDeepSeek, ConfigurationError, DeepSeek, StreamClosedError
from deepseek_client.transport.library import library

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # the scripted server has threads
]


def in_child(work: Callable[[], object]) -> Any:
    """What a function gives in a forked process."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def run() -> None:
        try:
            there.send(work())
        except BaseException:
            there.send(traceback.format_exc())

    child = context.Process(target=run)
    child.start()
    assert here.poll(60), "the child hangs"
    result = here.recv()
    child.join(60)
    assert child.exitcode == 0
    return result


@pytest.fixture
def client(server, kit):
    server.script(kit.echo)
    with DeepSeek(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize("was_used", [True, False])
def test_parent_and_child_have_connections_of_their_own(server, client, was_used):
    if was_used:
        assert client.generate("before").text == "before"
    assert in_child(lambda: [client.generate(f"child {n}").text for n in range(3)]) == ["child 0", "child 1", "child 2"]
    assert [client.generate(f"parent {n}").text for n in range(3)] == ["parent 0", "parent 1", "parent 2"]
    assert server.num_connections == 2


def test_a_client_that_the_child_closes_goes_on_in_the_parent(server, client):
    client.generate("before")

    def use_and_close() -> str:
        with client:
            return client.generate("child").text

    assert in_child(use_and_close) == "child"
    assert in_child(client.close) is None
    assert client.generate("after").text == "after"
    assert server.num_connections == 2


def test_a_stream_goes_on_in_the_parent_and_is_refused_to_the_child(server, client):
    stream = client.generate_stream("abcdef")
    assert next(stream) == "a"

    def misuse() -> str:
        with stream:
            try:
                list(stream)
            except StreamClosedError as error:
                return str(error)
        return "it was read"

    assert "belongs to the process that opened it" in in_child(misuse)

    def forget() -> None:
        nonlocal stream
        del stream  # the last one: its finaliser runs

    assert in_child(forget) is None
    assert "".join(stream) == "bcdef"
    assert server.num_connections == 1


def test_many_children_and_the_parent_at_once_never_mix_their_answers(server, client):
    client.generate("before")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def work(name: str) -> list[str]:
        return [client.generate(f"{name} {n}").text for n in range(10)]

    children = [context.Process(target=lambda name=name: queue.put((name, work(name)))) for name in "abc"]
    for child in children:
        child.start()
    assert work("parent") == [f"parent {n}" for n in range(10)]
    for _ in children:
        name, texts = queue.get(timeout=60)
        assert texts == [f"{name} {n}" for n in range(10)]
    for child in children:
        child.join(60)
    assert server.num_connections == 4


def test_an_async_client_has_connections_of_its_own_too(server, kit):
    server.script(kit.echo)

    async def use(client: AsyncDeepSeek, prompt: str) -> list[str]:
        first = await client.generate(prompt)
        return [first.text, *[letter async for letter in client.generate_stream(prompt)]]

    async def parent() -> None:
        async with AsyncDeepSeek(base_url=server.url) as client:
            assert await use(client, "ab") == ["ab", "a", "b"]
            stream = client.generate_stream("xyz")
            assert await anext(stream) == "x"
            child = in_child(lambda: asyncio.run(use(client, "cd")))
            assert child == ["cd", "c", "d"]
            assert [letter async for letter in stream] == ["y", "z"]
            assert await use(client, "ef") == ["ef", "e", "f"]

    asyncio.run(parent())
    assert server.num_connections == 2


def test_a_caller_s_own_http_client_is_refused_to_the_child_once_the_parent_has_used_it(server, kit):
    server.script(kit.echo)
    with library().Client() as mine:
        unused = DeepSeek(base_url=server.url, http_client=mine)
        used = DeepSeek(base_url=server.url, http_client=mine)
        used.generate("before")

        def refused() -> str:
            with pytest.raises(ConfigurationError, match="before the process forked"):
                used.generate("child")
            return "refused"

        assert in_child(refused) == "refused"
        assert used.generate("after").text == "after"
        del unused
