"""Through a real nginx with its default proxy settings: nothing is gathered, and a caller that leaves is seen."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepseek_gateway.testing.caller import next_event
from deepseek_gateway.testing.nginx import nginx_before, nginx_program
from deepseek_gateway.testing.stack import Stack, running_stack

pytestmark = pytest.mark.skipif(nginx_program() is None, reason="nginx is not installed")

TURN = {"messages": [{"role": "user", "content": "a b c"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/generate": {"prompt": "a b c"},
    "/v1/completions": {"prompt": "a b c"},
    "/v1/chat/completions": TURN,
    "/v1/messages": {**TURN, "max_tokens": 50},
    "/v1/responses": {"input": "a b c"},
}


@pytest.fixture
async def behind_nginx(state_dir: Path) -> AsyncIterator[Stack]:
    async with running_stack(state_dir, keep_alive_s=0.2) as stack, nginx_before(stack.running.url) as url:
        yield replace(stack, caller=replace(stack.caller, url=url))


@pytest.mark.parametrize("path", BODIES)
async def test_events_arrive_one_by_one(behind_nginx: Stack, path: str) -> None:
    stack = behind_nginx
    body = {**BODIES[path], "stream": True, "fake": {"tokens": 3, "gated": True}}
    async with stack.caller.open(path, body) as answer:
        for word in ("w1", "w2", "w3"):
            stack.engine.allow()
            while word not in await next_event(answer):  # the engine waits: this word came alone
                pass
        stack.engine.allow()
        assert await answer.read()
    assert (await stack.row()).accuracy == "exact"


@pytest.mark.parametrize(("path", "sign"), [("/v1/generate", ": keep-alive"), ("/v1/messages", "event: ping")])
async def test_signs_of_life_arrive_while_the_engine_is_silent(behind_nginx: Stack, path: str, sign: str) -> None:
    stack = behind_nginx
    body = {**BODIES[path], "stream": True, "fake": {"tokens": 1, "queued": True}}
    async with stack.caller.open(path, body) as answer:
        assert (await next_event(answer)).startswith(sign)
        assert (await next_event(answer)).startswith(sign)
        stack.engine.allow()
        assert b"w1" in await answer.read()


async def test_a_caller_that_leaves_nginx_leaves_the_engine(behind_nginx: Stack) -> None:
    stack = behind_nginx
    stack.engine.allow(2)
    body = {"prompt": "a", "stream": True, "fake": {"tokens": 100, "gated": True}}
    async with stack.caller.open("/v1/generate", body) as answer:
        while "w2" not in await next_event(answer):
            pass
        answer.close()
    row = await stack.row()
    assert (row.status, row.completion_tokens, row.accuracy) == ("cancelled", 2, "exact")
