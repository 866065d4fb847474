"""A kept answer is given out as a fresh request would be served: its key, models and word lists are those of now."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deepseek_gateway.app import create_app
from deepseek_gateway.auth.drafts import KeyChanges
from deepseek_gateway.edge.protocol import GuardedProtocol
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.guard.entries import Direction, Entry, Level, Match
from deepseek_gateway.settings import ConfigSource
from deepseek_gateway.state_dir import prepare_state
from deepseek_gateway.testing.caller import Caller, Reply
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import OPERATOR, RunningGateway, Stack, running_stack

ONCE = {"idempotency-key": "order-17"}
STREAM: dict[str, Any] = {"prompt": "a b c", "stream": True}
Way = Callable[[Caller, Reply], Awaitable[Reply]]


async def retry(caller: Caller, _: Reply) -> Reply:
    return await caller.post(body=STREAM, headers=ONCE)


async def go_on(caller: Caller, first: Reply) -> Reply:
    return await caller.post(body=STREAM, headers={"last-event-id": f"{first.headers['x-request-id']}:0"})


async def put_in_force(running: RunningGateway, *patterns: str, **values: Any) -> None:
    """Make these the word lists."""
    words = running.gateway.store.words
    fields: dict[str, Any] = {"level": Level.BLOCK, "direction": Direction.BOTH, "match": Match.SUBSTRING, **values}

    def write() -> None:
        entries = [Entry(pattern=pattern, **fields) for pattern in patterns]
        version = words.add_version("demo", entries, note="", by="test", now=time.time())
        words.activate("demo", version.version)

    await asyncio.to_thread(write)
    await running.gateway.words.refresh()


@pytest.fixture
async def stack(state_dir: Path) -> AsyncIterator[Stack]:
    async with running_stack(state_dir, key_cache_ttl_s=0) as running:
        yield running


@pytest.fixture(params=[retry, go_on])
def again(request: pytest.FixtureRequest) -> Way:
    """The two ways to get an answer a second time."""
    return request.param


async def first_answer(caller: Caller) -> Reply:
    first = await caller.post(body=STREAM, headers=ONCE)
    assert first.status == 200
    return first


async def test_a_key_that_is_disabled_gets_nothing_again(stack: Stack, again: Way) -> None:
    first = await first_answer(caller := stack.with_key())
    await asyncio.to_thread(stack.gateway.keys.set_disabled, OPERATOR, caller.key_id, disabled=True)
    assert (await again(caller, first)).status == 401


async def test_a_key_that_may_not_use_the_model_any_more_gets_nothing_again(stack: Stack, again: Way) -> None:
    first = await first_answer(caller := stack.with_key(models=["fake*"]))
    assert (await again(caller, first)).status == 200
    await asyncio.to_thread(stack.gateway.keys.change, OPERATOR, caller.key_id, KeyChanges(models=["other"]))
    refused = await again(caller, first)
    assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")
    assert len(stack.engine.bodies) == 1


async def test_an_answer_that_other_word_lists_let_pass_is_not_given_out_again(stack: Stack, again: Way) -> None:
    first = await first_answer(stack.caller)
    await put_in_force(stack.running, "w2")
    refused = await again(stack.caller, first)
    assert (refused.status, refused.error["code"]) == (409, "word_lists_changed")
    assert '"w2' not in refused.body.decode()
    fresh = await stack.caller.post(body=STREAM, headers={"idempotency-key": "order-18"})
    assert "content_filter" in fresh.body.decode()


async def test_lists_that_are_put_in_force_again_unchanged_are_the_same(stack: Stack, again: Way) -> None:
    await put_in_force(stack.running, "bomb")
    first = await first_answer(stack.caller)
    await stack.gateway.words.refresh()
    assert (await again(stack.caller, first)).status == 200
    await put_in_force(stack.running, "bomb", level=Level.MASK)
    assert (await again(stack.caller, first)).status == 409


async def test_an_entry_that_begins_to_count_makes_other_lists(stack: Stack) -> None:
    snapshot = stack.gateway.words
    await put_in_force(stack.running, "bomb", valid_from=time.time() + 3600)
    before = snapshot.list_version
    await put_in_force(stack.running, "bomb", valid_from=time.time() - 3600)
    assert before.startswith("demo@1#")
    assert snapshot.list_version.startswith("demo@2#")
    assert before.partition("#")[2] != snapshot.list_version.partition("#")[2]


async def test_a_model_that_nobody_serves_any_more_is_a_404(tmp_path: Path, state_dir: Path, again: Way) -> None:
    file = tmp_path / "gateway.toml"

    def write(model: str) -> None:
        upstream = f'[[upstreams]]\nurl = "{served.url}"\nmodels = ["{model}"]\n'
        file.write_text(f'state_dir = "{state_dir}"\nreload_poll_s = 3600.0\n{upstream}')

    engine = FakeEngine()
    async with serving(engine) as served, aiohttp.ClientSession() as session:
        write("fake-model")
        source = ConfigSource(file)
        await asyncio.to_thread(prepare_state, source.load())
        async with (
            Gateway(source.load(), source) as gateway,
            serving(create_app(gateway), protocol=GuardedProtocol) as front,
        ):
            running = RunningGateway(gateway, front.url)
            caller = Caller(session, front.url, running.key())
            first = await first_answer(caller)
            assert (await again(caller, first)).status == 200
            write("another")
            assert await gateway.reload()
            refused = await again(caller, first)
            assert (refused.status, refused.error["code"]) == (404, "model_not_found")
            assert len(engine.bodies) == 1
