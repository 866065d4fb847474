"""Where a limit hangs on the length of a prompt, an engine counts it before anything is refused or let in."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.limits.local import LocalLimiter
from deepseek_gateway.limits.rulebook import Rulebook
from deepseek_gateway.limits.rules import Amounts, Ask, Kind, LimitReached, LimitRule, Limits, Now, Subject
from deepseek_gateway.money.prices import Price
from deepseek_gateway.relay.allowance import SliceSizes, ask_of, clamp_of
from deepseek_gateway.relay.holding import Terms
from deepseek_gateway.relay.prompt_texts import countable
from deepseek_gateway.relay.request import Dialect, PromptSize, read_request
from deepseek_gateway.testing.caller import Caller
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import Stack, running_gateway

LONG_WORDS = "immeasurably " * 2000
"""26,000 bytes: 8,667 tokens by the estimate, 2,000 as the fake engine counts, and 4 of a chat around them."""

SHORT_WORDS = "a " * 2000
"""4,000 bytes: 1,335 tokens by the estimate, 2,000 in truth."""


def asks(stack: Stack) -> int:
    """How often the engine was asked to count."""
    return sum(path.endswith("/tokenize") for path in stack.engine.paths)


@pytest.mark.parametrize("rule", ["tokens_per_minute", "tokens_per_month"])
async def test_a_prompt_that_fits_is_let_in_whatever_its_estimate(stack: Stack, rule: str) -> None:
    caller = stack.with_key(**{rule: 3000})
    body = {"prompt": LONG_WORDS, "max_tokens": 8, "fake": {"tokens": 8, "prompt_tokens": 2000}}
    assert (await caller.post(body=body)).status == 200
    assert asks(stack) == 1
    row = await stack.row()
    assert (row.prompt_tokens, row.completion_tokens) == (2000, 8)


async def test_a_chat_is_counted_with_its_template_and_its_tools(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_minute=3000)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    body = {
        "messages": [{"role": "user", "content": LONG_WORDS}], "tools": [tool], "max_tokens": 8, "stream": True,
        "fake": {"tokens": 8, "prompt_tokens": 2000},
    }  # fmt: skip
    reply = await caller.post("/v1/chat/completions", body)
    assert reply.status == 200
    asked = stack.engine.bodies[0]
    assert (asked["messages"], asked["tools"]) == (body["messages"], body["tools"])
    assert "stream" not in asked


async def test_a_prompt_that_does_not_fit_is_refused_by_its_true_length(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_minute=1500)
    refused = await caller.post(body={"prompt": LONG_WORDS, "max_tokens": 8})
    assert (refused.status, refused.error["code"]) == (429, "tokens_per_minute")
    assert (
        "this request needs 2004 tokens for its prompt and 8 for its answer, so it never fits"
        in (refused.error["message"])
    )
    assert "retry-after" not in refused.headers


async def test_a_prompt_that_is_longer_than_it_looks_is_refused_before_the_engine_works(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_month=1800)
    refused = await caller.post(body={"prompt": SHORT_WORDS, "max_tokens": 8})
    assert (refused.status, refused.error["code"]) == (402, "insufficient_balance")
    assert "needs 2012 (2004 tokens for its prompt and 8 for its answer)" in refused.error["message"]
    assert not stack.engine.finished
    small = {"prompt": "a", "max_tokens": 1790, "fake": {"tokens": 1, "prompt_tokens": 1}}
    assert (await caller.post(body=small)).status == 200  # nothing of the first is held


async def test_what_a_bucket_lacks_comes_with_the_wait_for_it(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_minute=2400)
    first = {"prompt": "a", "max_tokens": 900, "fake": {"tokens": 900, "prompt_tokens": 100}}
    assert (await caller.post(body=first)).status == 200
    refused = await caller.post(body={"prompt": SHORT_WORDS, "max_tokens": 8})
    assert refused.status == 429
    # 612 of 2,012 are missing, less what came back since: 40 a second.
    assert 1 <= int(refused.headers["retry-after"]) <= math.ceil(612 / 40)


async def test_far_from_a_limit_nobody_is_asked(stack: Stack) -> None:
    for rules in ({}, {"tokens_per_minute": 100_000}, {"requests_per_minute": 5}):
        body = {"prompt": SHORT_WORDS, "max_tokens": 8, "fake": {"tokens": 8}}
        assert (await stack.with_key(**rules).post(body=body)).status == 200
    assert asks(stack) == 0


async def test_a_limit_that_is_used_up_costs_no_count(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_month=300)
    first = {"prompt": "a", "max_tokens": 290, "fake": {"tokens": 290, "prompt_tokens": 10}}
    assert (await caller.post(body=first)).status == 200
    assert (await caller.post(body={"prompt": LONG_WORDS, "max_tokens": 8})).status == 402
    assert asks(stack) == 0


async def test_an_engine_without_a_tokenizer_is_asked_once_and_the_estimate_decides(stack: Stack) -> None:
    stack.engine.lacks.add("tokenize")
    caller = stack.with_key(tokens_per_minute=3000)
    for _ in range(2):
        refused = await caller.post(body={"prompt": LONG_WORDS, "max_tokens": 8})
        assert refused.status == 429
        assert "needs about 86" in refused.error["message"]
    assert len(stack.engine.paths) == 0  # the fake notes no paths of what it lacks
    upstream = stack.gateway.pool.upstreams[0]
    assert not upstream.has_tokenizer


async def test_an_answer_without_max_tokens_leaves_room_for_a_prompt_that_is_longer_than_it_looks(
    stack: Stack,
) -> None:
    caller = stack.with_key(tokens_per_month=6100)
    assert (await caller.post(body={"prompt": SHORT_WORDS, "fake": {"tokens": 1, "prompt_tokens": 2000}})).status == 200
    assert 2000 <= stack.engine.bodies[0]["max_tokens"] <= 4100
    assert asks(stack) == 0


PRICE = Price("m@1", 0.0, input_cache_hit=1, input_cache_miss=2, output=3, reasoning=3)
SIZES = SliceSizes(slice_tokens=64, overrun_tokens=8, default_max_tokens=4096)
SUBJECT = Subject("k1", "acme", model="m1")
NOW = Now(0.0, 0.0)


@given(
    kind=st.sampled_from([Kind.TOKENS_PER_MINUTE, Kind.TOKENS_PER_MONTH, Kind.MONEY_PER_DAY, Kind.BALANCE]),
    limit=st.integers(20, 4000),
    taken=st.integers(0, 3000),
    estimate=st.integers(1, 2000),
    truth=st.floats(0.11, 3.0),
    max_tokens=st.none() | st.integers(1, 500),
    stream=st.booleans(),
)
def test_nothing_that_fits_is_refused_and_nothing_that_does_not_is_let_in(
    kind: Kind, limit: int, taken: int, estimate: int, truth: float, max_tokens: int | None, stream: bool
) -> None:
    is_balance, price = kind is Kind.BALANCE, PRICE if kind.unit == "money" else None
    rules = [] if is_balance else [LimitRule("r", kind, limit, org_id="acme")]
    plan = Rulebook(rules, {"org:acme": limit} if is_balance else {}).plan(SUBJECT, Limits())
    limiter = LocalLimiter(clocks=lambda: NOW)
    tokens = max(1, int(estimate * truth))
    blank = read_request(Dialect.GENERATE, {"prompt": "", "max_tokens": max_tokens, "stream": stream})
    request = replace(blank, prompt=PromptSize(estimate, 3 * estimate))
    terms = Terms(limiter, plan, price, SIZES)

    def cost(prompt: int, answer: int) -> int:
        return prompt + answer if price is None else price.estimate_nano(prompt, answer)

    async def count() -> int:
        return tokens

    async def run() -> None:
        others = await limiter.admit("q1", plan, Ask(0, 0, Amounts(taken, taken), Amounts()))
        state = limiter.state(plan.meters[0].counter)
        assert state is not None
        room = math.floor(state.room(limit, NOW))
        assert room == limit - min(taken, limit)
        try:
            counted, reservation = await terms.hold("q2", request, count)
        except LimitReached:
            least = ask_of(request.counted(tokens), plan, price, SIZES).least
            assert (least.tokens if price is None else least.nano) > room
            assert math.floor(state.room(limit, NOW)) == room, "a refusal holds nothing"
            return
        left = math.floor(state.room(limit, NOW))
        assert 0 <= left <= room
        answer = clamp_of(counted, reservation, price) or (1 if stream else max_tokens or 1)
        assert cost(tokens, answer) <= room, "what was let in fits"
        assert others.tokens == min(taken, limit) or price is not None
        limiter.settle(reservation, Amounts())
        assert math.floor(state.room(limit, NOW)) == room

    asyncio.run(run())


async def test_a_caller_who_leaves_while_the_prompt_is_counted_holds_nothing() -> None:
    plan = Rulebook().plan(SUBJECT, Limits(tokens_per_minute=1500, concurrent_requests=1))
    limiter = LocalLimiter(clocks=lambda: NOW)
    request = replace(read_request(Dialect.GENERATE, {"prompt": "", "max_tokens": 8}), prompt=PromptSize(1000, 3000))
    asked = asyncio.Event()

    async def count() -> int:
        asked.set()
        await asyncio.Event().wait()
        return 1

    holding = asyncio.create_task(Terms(limiter, plan, None, SIZES).hold("q1", request, count))
    await asked.wait()
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert (await limiter.admit("q2", plan, Ask(1500, 0, Amounts(1500), Amounts(1500)))).tokens == 1500


async def test_the_cloud_never_counts(state_dir: Path) -> None:
    cloud = FakeEngine()
    async with serving(cloud) as served:
        upstream = {"url": served.url, "kind": "deepseek-cloud", "key": "x"}
        async with running_gateway(state_dir, upstream) as running, aiohttp.ClientSession() as session:
            key = running.key(tags=["allow-cloud"], tokens_per_minute=3000)
            body = {"messages": [{"role": "user", "content": LONG_WORDS}], "max_tokens": 8}
            assert (await Caller(session, running.url, key).post("/v1/chat/completions", body)).status == 429
    assert not [path for path in cloud.paths if path.endswith("/tokenize")]


@pytest.mark.parametrize(
    ("dialect", "fields", "bodies", "known"),
    [
        (Dialect.GENERATE, {"prompt": "a", "raw": True}, [[{"prompt": "a"}]], 0),
        (
            Dialect.GENERATE,
            {"prompt": "a"},
            [[{"messages": [{"role": "user", "content": "a"}]}, {"prompt": "a"}]],
            0,
        ),
        (Dialect.COMPLETIONS, {"prompt": ["a", "b"]}, [[{"prompt": "a"}], [{"prompt": "b"}]], 0),
        (Dialect.COMPLETIONS, {"prompt": [[1, 2], [3]]}, [], 3),
        (Dialect.COMPLETIONS, {"prompt": "a", "suffix": "b"}, [[{"prompt": "a"}], [{"prompt": "b"}]], 4),
        (Dialect.EMBEDDINGS, {"input": "a"}, [[{"prompt": "a"}]], 0),
    ],
)
def test_each_dialect_asks_for_its_own_text(dialect: Dialect, fields: dict, bodies: list, known: int) -> None:
    asked = countable(read_request(dialect, fields))
    assert asked is not None
    assert ([list(each) for each in asked.bodies], asked.known) == (bodies, known)


@pytest.mark.parametrize("prompt", ["x" * 3_000_000, ["a"] * 17])
def test_what_would_take_a_tokenizer_long_is_judged_by_the_estimate(prompt: object) -> None:
    assert countable(read_request(Dialect.COMPLETIONS, {"prompt": prompt})) is None
