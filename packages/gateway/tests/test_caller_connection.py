"""What a caller's connection says while its request runs: that it left, whatever else was sent over it before."""

import asyncio
import contextlib
import gc
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

import pytest

from deepseek_gateway.edge.cycle import CallerCycle
from deepseek_gateway.testing.stack import Stack

HEALTH = b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n"


def request(stack: Stack, body: Mapping[str, object]) -> bytes:
    """A request for generation, as it is sent."""
    data = json.dumps(body).encode()
    head = f"POST /v1/generate HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {stack.caller.key}\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


async def connect(stack: Stack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", urlsplit(stack.running.url).port)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("behind", [b"", HEALTH, HEALTH * 3], ids=["alone", "one-behind", "three-behind"])
@pytest.mark.parametrize("words", [1, 40_000], ids=["small", "large"])
async def test_a_caller_that_leaves_is_noticed_whatever_it_sent(
    stack: Stack, stream: bool, behind: bytes, words: int
) -> None:
    _, writer = await connect(stack)
    body = {"prompt": "word " * words, "stream": stream, "fake": {"tokens": 100, "gated": True}}
    writer.write(request(stack, body) + behind)
    await stack.engine.until_running()
    writer.close()
    row = await stack.row()
    assert (row.status, row.end_reason, row.http_status) == ("cancelled", "client_disconnect", 499)
    assert stack.engine.finished[0].finish == "abort"


async def test_requests_behind_each_other_are_answered_in_their_order(stack: Stack) -> None:
    reader, writer = await connect(stack)
    asks = [request(stack, {"prompt": "a " * number + "a", "fake": {"tokens": 1}}) for number in (0, 30_000, 1)]
    writer.write(b"".join([asks[0], HEALTH, asks[1], HEALTH, asks[2]]))
    bodies: list[bytes] = []
    for _ in range(5):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        bodies.append(await reader.readexactly(length))
    prompts = [json.loads(body).get("usage", {}).get("prompt_tokens") for body in bodies]
    writer.close()
    assert prompts == [1, None, 30_001, None, 2]


async def test_requests_behind_one_that_runs_do_not_pile_up(stack: Stack) -> None:
    reader, writer = await connect(stack)
    writer.write(request(stack, {"prompt": "a", "fake": {"tokens": 2, "gated": True}}))
    await stack.engine.until_running()
    for _ in range(20):  # nobody means this
        writer.write(HEALTH * 5000)
        await writer.drain()
    gc.collect()
    assert sum(type(each) is CallerCycle for each in gc.get_objects()) < 100
    stack.engine.allow(2)
    async with asyncio.timeout(30):
        answer = await reader.read()
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"HTTP/1.1 503" in answer
    writer.close()


async def test_a_flood_of_small_requests_is_answered_or_ended_without_piling_up(stack: Stack) -> None:
    _, writer = await connect(stack)
    most = 0

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, sum(type(each) is CallerCycle for each in gc.get_objects()))
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    with contextlib.suppress(ConnectionError):
        for _ in range(20):
            writer.write(HEALTH * 2000)
            await writer.drain()
    looking.cancel()
    writer.close()
    assert most < 100
