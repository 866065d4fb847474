"""The scripted server of deepseek_client.testing, and a client of each kind to talk to it."""

import asyncio
import contextlib
import inspect
import io
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from deepseek_client import AsyncDeepSeek, DeepSeek
from deepseek_client.cli import main
from deepseek_client.testing import (
    Connection,
    FakeServer,
    chat_chunk,
    chat_completion,
    events,
    generation,
    reply,
    text_chunk,
)
from deepseek_client.testing.answers import USAGE

WAIT_S = 10.0
MESSAGES = [{"role": "user", "content": "Hi"}]


async def settle(value: Any) -> Any:
    """The result of a call of either client."""
    return await value if inspect.isawaitable(value) else value


async def collect(stream: Any) -> list[Any]:
    """All items of a stream of either client."""
    if hasattr(stream, "__aiter__"):
        return [item async for item in stream]
    return list(stream)


async def collect_into(items: list[Any], stream: Any) -> None:
    """All items of a stream of either client, kept also when it fails."""
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            items.append(item)
    else:
        items.extend(stream)


async def take(stream: Any) -> Any:
    """The next item of a stream of either client."""
    return await anext(stream) if hasattr(stream, "__anext__") else next(stream)


@contextlib.asynccontextmanager
async def entered(stream: Any) -> AsyncIterator[Any]:
    """`with` or `async with`."""
    if hasattr(stream, "__aenter__"):
        async with stream as value:
            yield value
    else:
        with stream as value:
            yield value


async def until(condition: Callable[[], bool]) -> None:
    """Poll, with a deadline."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


def echo(connection: Connection) -> None:
    """A handler: the prompt, as a text or a stream of its letters."""
    prompt = connection.request.json["prompt"]
    if not connection.request.is_stream:
        reply({"id": "g", "text": prompt})(connection)
        return
    events(*({"id": "g", "text": letter} for letter in prompt))(connection)


def run_cli(environ: dict[str, str], *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`deepseek` in this process: its start takes most of the time that a process takes."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environ)
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(arguments)
            except SystemExit as end:  # of argparse
                status = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


class Kit:
    """The helpers above and the wire's shapes, for test modules, which cannot import this one."""

    reply = staticmethod(reply)
    run_cli = staticmethod(run_cli)
    echo = staticmethod(echo)
    events = staticmethod(events)
    text_event = staticmethod(text_chunk)
    chat_event = staticmethod(chat_chunk)
    settle = staticmethod(settle)
    collect = staticmethod(collect)
    collect_into = staticmethod(collect_into)
    take = staticmethod(take)
    entered = staticmethod(entered)
    until = staticmethod(until)
    USAGE = USAGE
    GENERATION = generation()
    CHAT = chat_completion()
    MESSAGES = MESSAGES


@pytest.fixture
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as scripted:
        yield scripted


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEEPSEEK_API_KEY", "DEEPSEEK_BASE_URL", "DEEPSEEK_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["sync", "async"])
async def connect(request: pytest.FixtureRequest, server: FakeServer) -> AsyncIterator[Callable[..., Any]]:
    """Makes clients of one kind, for the scripted server."""
    clients: list[Any] = []

    def make(**options: Any) -> Any:
        cls = DeepSeek if request.param == "sync" else AsyncDeepSeek
        client = cls(**{"base_url": server.url, "api_key": "dsk_test_secretsecret1234", **options})
        clients.append(client)
        return client

    yield make
    for client in clients:
        await settle(client.close())
