"""SDK, gateway and engine on one event loop: the SDK calls the gateway's app without a socket."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from deepseek_client import AsyncDeepSeek, RateLimitError
from deepseek_client.asgi import AsyncASGITransport
from deepseek_gateway.app import create_app
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.stack import Stack, running_stack

MESSAGES = [{"role": "user", "content": "a b"}]


@pytest.fixture
async def stack() -> AsyncGenerator[Stack]:
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        async with running_stack(Path(folder) / "state", upstream_probe_s=0.05) as running:
            yield running


@contextlib.asynccontextmanager
async def client_of(stack: Stack, key: str | None = None) -> AsyncGenerator[AsyncDeepSeek]:
    transport = AsyncASGITransport(create_app(stack.gateway))
    async with AsyncDeepSeek(transport=transport, api_key=key or stack.caller.key, max_retries=0) as client:
        yield client


async def test_a_stream_passes_word_by_word_and_is_billed(stack: Stack) -> None:
    fake = {"fake": {"tokens": 3, "gated": True}}
    async with client_of(stack) as client:
        stream = await client.chat.completions.create(messages=MESSAGES, stream=True, extra_body=fake)
        texts = []
        for number in range(1, 4):
            stack.engine.allow()
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    texts.append(chunk.choices[0].delta.content)
                    break
            assert all(job.num_sent == number for job in stack.engine.running.values())
        answer = await stream.until_done()
    assert "".join(texts) == answer.choices[0].message.content == "w1 xxw2 xxw3 xx"
    row = await stack.row()
    assert (row.status, row.completion_tokens, row.http_status) == ("finished", 3, 200)
    assert row.request_id == stream.request_id


async def test_leaving_a_stream_stops_the_engine_and_bills_exactly_what_was_made(stack: Stack) -> None:
    fake = {"fake": {"tokens": 100, "gated": True, "cached_tokens": 1}}
    async with client_of(stack) as client:
        stack.engine.allow(3)
        async with client.generate_stream("a b", extra_body=fake) as stream:
            for _ in range(3):
                await anext(stream)
        row = await stack.row()
    assert (row.status, row.end_reason, row.accuracy) == ("cancelled", "client_disconnect", "exact")
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (2, 3, 1)
    assert [done.finish for done in stack.engine.finished] == ["abort"]


async def test_cancelling_the_task_that_reads_is_billed_exactly_too(stack: Stack) -> None:
    async with client_of(stack) as client:
        stack.engine.allow(4)
        asking = asyncio.create_task(client.generate("a b", extra_body={"fake": {"tokens": 100, "gated": True}}))
        await until(lambda: any(job.num_sent == 4 for job in stack.engine.running.values()))
        asking.cancel()
        row = await stack.row()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert (row.status, row.completion_tokens, row.accuracy) == ("cancelled", 4, "exact")


async def test_a_hundred_streams_at_once_are_all_answered(stack: Stack) -> None:
    async with client_of(stack) as client:

        async def ask(number: int) -> str:
            async with client.generate_stream("a", max_tokens=1 + number % 5) as stream:
                return "".join([text async for text in stream])

        answers = await asyncio.gather(*map(ask, range(100)))
    assert [answer.count("w") for answer in answers] == [1 + number % 5 for number in range(100)]
    await until(lambda: stack.gateway.running == 0)
    rows = await stack.running.rows(100)
    assert sum(row.completion_tokens for row in rows) == stack.engine.truth.completion == 300


async def test_a_limit_is_an_error_of_its_class(stack: Stack) -> None:
    async with client_of(stack, stack.running.key(requests_per_minute=1)) as client:
        await client.generate("a")
        with pytest.raises(RateLimitError) as caught:
            await client.generate("a")
    assert caught.value.retry_after is not None
