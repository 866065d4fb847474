"""The SDK's `resume=True` against the real gateway: the connection cut at any byte, the gateway killed in between."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepseek_client import AsyncDeepSeek, DeepSeek, StreamTruncatedError
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.cutting import CuttingProxy
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.processes import GATEWAY, RunningProcess, make_state
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import Stack

TURN: Any = [{"role": "user", "content": "a b c"}]
WORDS = [f"w{number} xx" for number in range(1, 7)]
SCRIPT: Any = {"extra_body": {"fake": {"tokens": len(WORDS)}}}
STEP = 263
"""Bytes between two cuts."""


@pytest.fixture
def proxy(stack: Stack) -> Iterator[CuttingProxy]:
    with CuttingProxy(stack.running.url) as proxy:
        yield proxy


def make(kind: type[Any], url: str, key: str, **options: Any) -> Any:
    """A client that wants its streams resumed, and waits no time between attempts."""
    client = kind(base_url=url, api_key=key, resume=True, **options)
    client._core.exchange._chance = lambda: 0.0
    return client


async def read(stream: Any, items: list[Any], count: int = sys.maxsize) -> list[Any]:
    """Some items of a stream of either client, the sync one in a thread: the gateway lives on this event loop."""

    def read_sync() -> None:
        while len(items) < count and (item := next(stream, None)) is not None:
            items.append(item)

    if hasattr(stream, "__anext__"):
        while len(items) < count and (item := await anext(stream, None)) is not None:
            items.append(item)
    else:
        await asyncio.to_thread(read_sync)
    return items


async def close(client: Any) -> None:
    closing = client.close()
    if closing is not None:
        await closing


def generate(client: Any) -> Any:
    return client.generate_stream("a b c", **SCRIPT)


def chat(client: Any) -> Any:
    return client.chat.completions.stream(messages=TURN, **SCRIPT)


@pytest.mark.parametrize("call", [generate, chat])
@pytest.mark.parametrize("kind", [DeepSeek, AsyncDeepSeek])
async def test_a_stream_cut_at_any_byte_is_whole_and_billed_once(
    stack: Stack, proxy: CuttingProxy, kind: type[Any], call: Any
) -> None:
    profile = "gateway" if kind is DeepSeek else "auto"
    num_streams = num_replayed = 0
    for cut in range(STEP, 10_000, STEP):
        proxy.cuts, proxy.num_cut, proxy.resets = [cut], 0, cut % 2 == 0
        num_streams += 1
        client = make(kind, proxy.url, stack.caller.key, profile=profile)
        stream = call(client)
        await read(stream, [])
        snapshot = stream.snapshot
        text = snapshot.choices[0].message.content if call is chat else snapshot.text
        assert text == "".join(WORDS), cut
        assert (stream.usage.completion_tokens, stream.finish_reason) == (len(WORDS), "stop"), cut
        assert stream.retries_taken <= 1
        assert all(seam.how == "replay" for seam in stream.seams)
        num_replayed += len(stream.seams)
        await close(client)
        if not stream.retries_taken:  # it was shorter than this, or nothing was left but its end
            break
    assert num_streams == len(stack.engine.bodies) > 5
    assert num_replayed >= 1
    await until(lambda: stack.gateway.running == 0)
    rows = await stack.running.rows(num_streams)
    assert len(rows) == num_streams
    assert {(row.status, row.accuracy, row.completion_tokens) for row in rows} == {("finished", "exact", len(WORDS))}


async def test_a_chat_survives_the_kill_of_its_gateway_and_a_generate_says_why_not(state_dir: Path) -> None:
    key = await asyncio.to_thread(make_state, state_dir)
    engine = FakeEngine()
    async with serving(engine) as served:
        serve = [*GATEWAY, "serve", "--state", str(state_dir), "--upstream", served.url, "--port", "0"]
        with RunningProcess(serve) as first, CuttingProxy(await url_of(first)) as proxy:
            clients = [make(kind, proxy.url, key, profile="gateway") for kind in (DeepSeek, AsyncDeepSeek)]
            gated = {"extra_body": {"fake": {"tokens": 200, "gated": True}}}
            chats = [client.chat.completions.stream(messages=TURN, **gated) for client in clients]
            for chat_stream in chats:
                reading = asyncio.create_task(read(chat_stream, [], 3))
                while not reading.done():
                    engine.allow()
                    await asyncio.sleep(0.005)
            large = {"tokens": 3000, "word_bytes": 3000}  # far more than the sockets hold when the gateway dies
            lost = clients[0].generate_stream("a b c", extra_body={"fake": large})
            await read(lost, [], 2)
            first.process.kill()
            with RunningProcess(serve) as second:
                proxy.target = await url_of(second)
                engine.allow(1000)
                for chat_stream in chats:
                    await read(chat_stream, [])
                    (seam,) = chat_stream.seams
                    text = chat_stream.snapshot.choices[0].message.content
                    said, rest = text[: seam.position], text[seam.position :]
                    assert (seam.how, rest[:5], rest.count("w"), rest.startswith(said)) == (
                        "prefix",
                        "w1 xx",
                        200,
                        True,
                    )
                    assert engine.bodies[-1]["messages"] == [
                        *TURN,
                        {"role": "assistant", "content": said, "prefix": True},
                    ]
                with pytest.raises(StreamTruncatedError) as caught:
                    await read(lost, [])
                assert caught.value.partial_text.startswith("w1 xx")
                assert "no server continues an answer of generate" in caught.value.__notes__[0]
                for client in clients:
                    await close(client)


async def url_of(gateway: RunningProcess) -> str:
    return (await asyncio.to_thread(gateway.line, "listening on")).split()[-1]
