"""The ledger against the engine's own truth."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from deepseek_gateway.testing.caller import Caller, next_event, until
from deepseek_gateway.testing.stack import Stack, running_stack
from deepseek_gateway.upstream import attempt

REQUESTS = 500


async def one_request(stack: Stack, session: aiohttp.ClientSession, dice: random.Random) -> None:
    """A request of a random kind whose caller may leave at a random time."""
    path, body = dice.choice(
        [
            ("/v1/generate", {"prompt": "a b c"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello there"}]}),
            ("/v1/completions", {"prompt": "x"}),
        ]
    )
    fake = {
        "tokens": dice.randrange(1, 25),
        "delay_s": dice.choice([0, 0.002, 0.01]),
        "prompt_tokens": dice.randrange(9),
    }
    caller = Caller(session, stack.running.url, stack.caller.key)
    leaves = dice.random() < 0.5
    if leaves and dice.random() < 0.5:  # however fast or slow the machine is, these leave in the middle
        fake |= {"tokens": 40, "delay_s": 0.1}
        async with caller.open(path, {**body, "stream": True, "fake": fake}) as answer:
            await next_event(answer)
            answer.close()
        return
    try:
        async with asyncio.timeout(dice.uniform(0, 2.0) if leaves else None):
            await caller.post(path, {**body, "stream": dice.random() < 0.7, "fake": fake})
    except TimeoutError:
        pass


async def test_500_concurrent_requests_with_random_disconnects_are_billed_to_the_token(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "ABORT_TIMEOUT_S", 60.0)  # all share one event loop with their engine
    dice = random.Random(20261123)
    async with (
        running_stack(state_dir, abort_drain_s=60, shed_loop_lag_s=0) as stack,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        stack = replace(stack, caller=stack.with_key(concurrent_requests=REQUESTS, tokens_per_month=10**9))
        await asyncio.gather(*(one_request(stack, session, dice) for _ in range(REQUESTS)))
        await until(lambda: stack.gateway.running == 0, timeout_s=60)
        rows = await stack.running.rows()
        truth = stack.engine.truth
        assert not stack.engine.running
        assert {row.accuracy for row in rows} == {"exact"}
        assert sum(row.prompt_tokens for row in rows) == truth.prompt
        assert sum(row.completion_tokens for row in rows) == truth.completion
        assert {row.status for row in rows} == {"finished", "cancelled"}
        assert sum(row.status == "cancelled" for row in rows) > 50
        assert len({row.request_id for row in rows}) == len(rows) <= REQUESTS
        key = stack.caller.key_id
        assert stack.meter(f"key:{key}:concurrent_requests").running == 0
        month = stack.meter(f"key:{key}:tokens_per_month")
        assert (month.held, month.used) == (0, truth.total)
        assert all(upstream.in_flight == 0 for upstream in stack.gateway.pool.upstreams)
