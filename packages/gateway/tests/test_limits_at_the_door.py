"""Limits as callers meet them."""

import asyncio
import math
import re
from pathlib import Path

import pytest

from deepseek_gateway.testing.caller import Caller
from deepseek_gateway.testing.stack import Stack, running_gateway, running_stack


async def test_requests_a_minute(stack: Stack) -> None:
    caller = stack.with_key(requests_per_minute=2)
    first = await caller.post()
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert (await caller.post()).status == 200
    refused = await caller.post()
    assert (refused.status, refused.error["code"]) == (429, "requests_per_minute")
    assert refused.error["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    wait_ms = int(refused.headers["retry-after-ms"])
    assert int(refused.headers["retry-after"]) == math.ceil(wait_ms / 1000)
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await stack.caller.post()).status == 200  # others are not concerned


async def test_tokens_a_minute(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_minute=40)
    body = {"prompt": "a b c", "max_tokens": 20, "fake": {"tokens": 20, "prompt_tokens": 3}}
    first = await caller.post(body=body)
    assert first.status == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "40"
    refused = await caller.post(body=body)
    assert (refused.status, refused.error["code"]) == (429, "tokens_per_minute")
    assert int(refused.headers["retry-after"]) >= 1
    never = await caller.post(body={**body, "max_tokens": 41})
    assert (never.status, never.error["code"]) == (429, "tokens_per_minute")
    assert never.headers["x-should-retry"] == "false"
    assert "retry-after" not in never.headers


async def test_tokens_that_were_held_and_not_used_come_back(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_minute=100)
    body = {"prompt": "a", "max_tokens": 80, "fake": {"tokens": 1, "prompt_tokens": 1}}
    assert [(await caller.post(body=body)).status for _ in range(5)] == [200] * 5


async def test_headers_of_an_answer_in_one_piece_tell_what_is_left_after_it(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_month=1000)
    for left in (990, 980):  # all that is free was held for it
        reply = await caller.post(body={"prompt": "a b c", "fake": {"tokens": 7, "prompt_tokens": 3}})
        assert reply.headers["x-ratelimit-remaining-tokens"] == str(left)


async def test_an_answer_without_max_tokens_is_cut_to_what_a_small_limit_allows(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_month=50)
    assert (await caller.post(body={"prompt": "a"})).status == 200
    assert 1 <= stack.engine.bodies[0]["max_tokens"] < 50
    assert (await stack.caller.post(body={"prompt": "a"})).status == 200
    assert "max_tokens" not in stack.engine.bodies[1]


async def test_concurrent_requests(stack: Stack) -> None:
    caller = stack.with_key(concurrent_requests=1)
    running = asyncio.create_task(caller.post(body={"prompt": "a", "fake": {"tokens": 1, "gated": True}}))
    await stack.engine.until_running()
    refused = await caller.post()
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (429, "concurrent_requests", "1")
    stack.engine.allow()
    assert (await running).status == 200
    assert (await caller.post()).status == 200


async def test_a_place_is_free_again_after_a_disconnect(stack: Stack) -> None:
    caller = stack.with_key(concurrent_requests=1)
    running = asyncio.create_task(caller.post(body={"prompt": "a", "fake": {"gated": True}}))
    await stack.engine.until_running()
    running.cancel()
    await stack.row()
    assert (await caller.post()).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_sees_that_an_answer_failed_finds_its_place_free(stack: Stack, stream: bool) -> None:
    caller = stack.with_key(concurrent_requests=1)
    broken = {"prompt": "a", "stream": stream, "fake": {"tokens": 4, "cut_after": 2}}
    for _ in range(5):
        failed = await caller.post(body=broken)
        assert (failed.status, b"upstream_cut" in failed.body) == ((200, True) if stream else (502, False))
        assert (await caller.post()).status == 200


async def test_the_months_budget_is_a_402_that_says_when_it_resets(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_month=60)
    body = {"prompt": "a", "max_tokens": 50, "fake": {"tokens": 50, "prompt_tokens": 10}}
    assert (await caller.post(body=body)).status == 200
    refused = await caller.post(body=body)
    assert (refused.status, refused.error["code"]) == (402, "insufficient_balance")
    assert "it resets at 20" in refused.error["message"]
    assert "retry-after" not in refused.headers


async def test_a_refusal_of_a_budget_names_numbers_that_add_up(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_month=60)
    assert (await caller.post(body={"prompt": "a", "fake": {"tokens": 45, "prompt_tokens": 10}})).status == 200
    for body in ({"prompt": "a"}, {"prompt": "a", "max_tokens": 30}):
        refused = await caller.post(body=body)
        said = re.search(r"about ([0-9]+) \(([0-9]+) tokens .* and ([0-9]+) for", refused.error["message"])
        assert said is not None
        whole, prompt, answer = map(int, said.groups())
        assert whole == prompt + answer


async def test_a_restart_does_not_reset_the_months_budget(state_dir: Path) -> None:
    body = {"prompt": "a", "max_tokens": 50, "fake": {"tokens": 50, "prompt_tokens": 10}}
    async with running_stack(state_dir) as stack:
        key = stack.running.key(tokens_per_month=70)
        assert (await stack.caller.with_key(key).post(body=body)).status == 200
    async with running_stack(state_dir) as stack:
        assert (await stack.caller.with_key(key).post(body=body)).status == 402


@pytest.mark.parametrize("rule", ["tokens_per_month", "tokens_per_minute"])
async def test_a_stream_of_a_server_that_tells_its_usage_at_the_end_ends_at_its_limit_too(
    state_dir: Path, rule: str
) -> None:
    async with running_stack(state_dir, slice_tokens=16) as stack:
        caller = stack.with_key(**{rule: 100})
        body = {"messages": [{"role": "user", "content": "a b"}], "stream": True}
        script = {"tokens": 500, "delay_s": 0.0005, "foreign": True}
        reply = await caller.post("/v1/chat/completions", body={**body, "fake": script})
        assert reply.status == 200
        assert reply.events[-1].startswith("event: error\ndata: ")
        row = await stack.row()
        assert (row.status, row.end_reason) == ("failed", f"limit_{rule}")
        assert 0 < row.completion_tokens <= 100


@pytest.mark.parametrize("rule", ["tokens_per_month", "tokens_per_minute"])
async def test_a_stream_extends_while_it_can_and_then_ends_with_an_error_event(state_dir: Path, rule: str) -> None:
    async with running_stack(state_dir, slice_tokens=16) as stack:
        caller = stack.with_key(**{rule: 100})
        body = {"prompt": "a b", "stream": True, "fake": {"tokens": 500, "delay_s": 0.0005}}
        reply = await caller.post(body=body)
        assert reply.status == 200
        assert reply.events[-1].startswith("event: error\ndata: ")
        code = "insufficient_balance" if rule == "tokens_per_month" else "tokens_per_minute"
        assert f'"code":"{code}"' in reply.events[-1]
        row = await stack.row()
        assert (row.status, row.end_reason, row.accuracy) == ("failed", f"limit_{rule}", "exact")
        assert stack.engine.finished[0].finish == "abort"
        used = row.prompt_tokens + row.completion_tokens
        # Nearly all was given, and the few tokens over it are those made while the abort was on its way.
        assert 90 <= used <= 130
        assert len(reply.chunks) <= 101
        assert row.completion_tokens == stack.engine.truth.completion


async def test_a_stream_within_its_limits_is_not_disturbed_by_small_slices(state_dir: Path) -> None:
    async with running_stack(state_dir, slice_tokens=16) as stack:
        caller = stack.with_key(tokens_per_minute=10_000, tokens_per_month=10_000)
        reply = await caller.post(body={"prompt": "a", "stream": True, "fake": {"tokens": 300}})
        assert reply.events[-1] == "data: [DONE]"
        meter = stack.meter(f"key:{caller.key_id}:tokens_per_month")
        assert (meter.held, meter.used) == (0, 301)


async def test_concurrent_streams_of_one_key_share_its_budget(state_dir: Path) -> None:
    async with running_stack(state_dir, slice_tokens=16) as stack:
        caller = stack.with_key(tokens_per_month=400)
        body = {"prompt": "a", "stream": True, "fake": {"tokens": 100, "delay_s": 0.0005}}
        replies = await asyncio.gather(*(caller.post(body=body) for _ in range(20)))
        assert {reply.status for reply in replies} <= {200, 402}
        await stack.row()
        total = sum(row.prompt_tokens + row.completion_tokens for row in await stack.running.rows())
        assert 300 <= total <= 400 + 20 * 16
        assert total == stack.engine.truth.total


async def test_the_limits_of_a_key_hold_after_the_gateway_was_replaced(state_dir: Path) -> None:
    import aiohttp

    async with running_stack(state_dir) as stack:
        key = stack.running.key(tokens_per_month=30)
    async with running_gateway(state_dir, "http://127.0.0.1:9") as running, aiohttp.ClientSession() as session:
        reply = await Caller(session, running.url, key).post(body={"prompt": "a", "max_tokens": 31})
        assert reply.status == 402
