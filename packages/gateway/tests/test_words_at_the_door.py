"""The word filter of a whole gateway: requests refused, answers cut or masked, books kept."""

import asyncio
import sqlite3
import time
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest

from deepseek_gateway.audit.service import TraceService
from deepseek_gateway.guard.entries import Direction, Entry, Level, Match
from deepseek_gateway.guard.guard import RETRY_S
from deepseek_gateway.storage.words import PolicyRow
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.stack import OPERATOR, Stack, running_stack

LIST = [
    Entry("bomb", Level.BLOCK),
    Entry("darn", Level.MASK),
    Entry("plan", Level.REVIEW, category="demo"),
    Entry("bombay", Level.ALLOW),
    Entry("onlyin", Level.MASK, direction=Direction.IN),
]


OUT = [replace(entry, direction=Direction.OUT) for entry in LIST]
"""For scripts of the fake engine: they are a field of the request, and so are filtered with it."""


async def with_list(stack: Stack, entries: list[Entry], name: str = "demo") -> None:
    """Import a list, put it into force, and let the gateway load it."""

    def write() -> None:
        words = stack.gateway.store.words
        version = words.add_version(name, entries, note="", by="test", now=time.time())
        words.activate(name, version.version)

    await asyncio.to_thread(write)
    await stack.gateway.words.refresh()


async def set_policy(stack: Stack, *row: str) -> None:
    await asyncio.to_thread(stack.gateway.store.words.set_policy, PolicyRow(*row))
    await stack.gateway.words.refresh()


def bodies(text: str) -> list[tuple[str, dict[str, Any]]]:
    function = {"name": "f", "description": text, "parameters": {"type": "object", "properties": {}}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": f'{{"q": "{text}"}}'}}
    chats: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": text}]},
        {"messages": [{"role": "system", "content": text}, {"role": "user", "content": "x"}]},
        {"messages": [{"role": "tool", "tool_call_id": "c", "content": text}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]}
            ]
        },
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]},
        {"messages": [{"role": "assistant", "content": "x", "reasoning_content": text}]},
        {"messages": [{"role": "user", "name": text, "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": function}]},
        {"messages": [{"role": "user", "content": "x"}], "unheard_of": {"deep": [text]}},
        {"messages": [{"role": "user", "content": "x"}], "response_format": {"json_schema": {text: {}}}},
        {"messages": [{"role": "user", "content": "x"}], "stop": [text]},
    ]
    return [
        *(("/v1/chat/completions", chat) for chat in chats),
        ("/v1/generate", {"prompt": text}),
        ("/v1/completions", {"prompt": text}),
        ("/v1/completions", {"prompt": ["x", text]}),
        ("/v1/completions", {"prompt": "x", "suffix": text}),
        ("/v1/messages", {"model": "fake-model", "max_tokens": 9, "messages": [{"role": "user", "content": text}]}),
        ("/v1/responses", {"model": "fake-model", "input": text}),
        ("/v1/embeddings", {"model": "fake-model", "input": ["x", text]}),
    ]


async def test_a_blocked_word_in_any_text_refuses_the_request_before_the_engine(stack: Stack) -> None:
    await with_list(stack, LIST)
    for path, body in bodies("b\u200bOMb"):
        reply = await stack.caller.post(path, body)
        assert reply.status == 400, (path, body)
        assert b"content_filter" in reply.body or path == "/v1/messages"
        assert b"bomb" not in reply.body.lower()
    assert stack.engine.bodies == []
    assert await stack.running.rows() == []
    error = (await stack.caller.post("/v1/generate", {"prompt": "bomb"})).error
    assert (error["type"], error["code"], error["param"]) == ("content_filter", "content_filter", "prompt")


async def test_masked_words_do_not_reach_the_engine(stack: Stack) -> None:
    await with_list(stack, LIST)
    reply = await stack.caller.post("/v1/generate", {"prompt": "DARN it, onlyin Bombay!"})
    assert reply.status == 200
    assert stack.engine.bodies[0]["prompt"] == "**** it, ****** Bombay!"
    parts = [{"type": "text", "text": "a da"}, {"type": "text", "text": "rn b"}]
    await stack.caller.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
    sent = stack.engine.bodies[1]["messages"][0]["content"]
    assert "".join(part["text"] for part in sent) == "a **** b"


async def test_a_refused_request_counts_for_the_rate_and_costs_nothing(stack: Stack) -> None:
    await with_list(stack, LIST)
    caller = stack.with_key(requests_per_minute=2, tokens_per_month=1000)
    assert (await caller.post("/v1/generate", {"prompt": "bomb"})).status == 400
    assert (await caller.post("/v1/generate", {"prompt": "bomb"})).status == 400
    assert (await caller.post("/v1/generate", {"prompt": "x"})).status == 429


async def test_a_blocked_word_in_a_stream_ends_it_aborts_the_engine_and_bills_exactly(stack: Stack) -> None:
    await with_list(stack, LIST)
    pieces = ["to ", "build a bo", "mb, ", "take ", "more ", "of ", "it"]
    options = {"include_usage": True}
    fake = {"deltas": [{"content": piece} for piece in pieces], "gated": True, "prompt_tokens": 5}
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True, "stream_options": options, "fake": fake}
    stack.engine.allow(3)
    reply = await stack.caller.post("/v1/chat/completions", body)
    text = "".join(choice["delta"].get("content") or "" for chunk in reply.chunks for choice in chunk["choices"])
    assert text == "to build a "
    assert [c["finish_reason"] for chunk in reply.chunks for c in chunk["choices"] if c["finish_reason"]] == [
        "content_filter"
    ]
    assert reply.events[-1] == "data: [DONE]"
    assert reply.chunks[-1]["usage"]["completion_tokens"] == 3
    assert stack.engine.num_aborts >= 1
    row = await stack.row()
    assert (row.end_reason, row.status, row.completion_tokens, row.accuracy) == (
        *("content_filter", "finished", 3, "exact"),
    )


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/completions"])
async def test_other_dialects_are_cut_and_masked_alike(stack: Stack, path: str) -> None:
    await with_list(stack, LIST)
    pieces = ["dar", "n, a b", "omb ", "and on"]

    def texts(reply: Any) -> str:
        return "".join((chunk["choices"][0] if "choices" in chunk else chunk)["text"] for chunk in reply.chunks)

    streamed = await stack.caller.post(path, {"prompt": "x", "stream": True, "fake": {"pieces": pieces}})
    assert texts(streamed) == "****, a "
    assert streamed.events[-1] == "data: [DONE]"
    whole = (await stack.caller.post(path, {"prompt": "x", "fake": {"pieces": pieces}})).json
    answer = whole["choices"][0] if "choices" in whole else whole
    assert (answer["text"], answer["finish_reason"]) == ("****, a ", "content_filter")
    assert whole["usage"]["completion_tokens"] == 4
    assert {row.end_reason for row in await stack.running.rows(2)} == {"content_filter"}


async def test_a_generate_stream_that_was_cut_has_its_usage_in_the_last_event(stack: Stack) -> None:
    await with_list(stack, OUT)
    reply = await stack.caller.post(body={"prompt": "x", "stream": True, "fake": {"pieces": ["a ", "bomb!", "x"]}})
    assert reply.chunks[-1]["finish_reason"] == "content_filter"
    assert reply.chunks[-1]["usage"]["completion_tokens"] == (await stack.row()).completion_tokens


async def test_answers_in_anthropics_and_openais_other_dialect_are_filtered(stack: Stack) -> None:
    await with_list(stack, LIST)
    deltas = [{"content": piece} for piece in ("it is dar", "n, a b", "omb now")]
    key = str(stack.caller.key)
    async with anthropic.AsyncAnthropic(base_url=stack.caller.url, api_key=key, max_retries=0) as client:
        ask: dict[str, Any] = {"model": "fake-model", "max_tokens": 64, "messages": [{"role": "user", "content": "x"}]}
        async with client.messages.stream(**ask, extra_body={"fake": {"deltas": deltas}}) as stream:
            message = await stream.get_final_message()
    assert message.content[0].text == "it is ****, a "  # pyright: ignore
    assert message.stop_reason == "refusal"
    async with openai.AsyncOpenAI(base_url=f"{stack.caller.url}/v1", api_key=key, max_retries=0) as client:
        made = await client.responses.create(model="fake-model", input="x", extra_body={"fake": {"deltas": deltas}})
    assert made.output_text == "it is ****, a "
    assert {row.end_reason for row in await stack.running.rows(2)} == {"content_filter"}


async def test_reviewed_words_are_delivered_and_queued_without_their_text(stack: Stack) -> None:
    await with_list(stack, [*OUT, replace(LIST[2], direction=Direction.IN, pattern="my plan")])
    fake = {"pieces": ["the pl", "an is ", "a plan"]}
    reply = await stack.caller.post(body={"prompt": "my plan", "stream": True, "fake": fake})
    assert "".join(chunk["text"] for chunk in reply.chunks) == "the plan is a plan"
    await asyncio.to_thread(stack.gateway.words.queue.flush)
    rows = await asyncio.to_thread(stack.gateway.store.words.reviews, "new", 10)
    assert sorted((row.direction, row.field, row.hit_start, row.hit_end) for row in rows) == [
        ("in", "prompt", 0, 7),
        ("out", "text", 4, 8),
        ("out", "text", 14, 18),
    ]
    assert "plan" not in str([replace(row, rule="") for row in rows])
    assert {(row.category, row.rule) for row in rows} == {("demo", "demo@1#3"), ("demo", "demo@1#6")}
    assert len({row.hit_hmac for row in rows}) == 2
    assert {row.request_id for row in rows} == {(await stack.row()).request_id}


async def test_policies_say_what_a_list_does_for_whom(stack: Stack) -> None:
    await with_list(stack, LIST)
    await set_policy(stack, "all", "", "demo", "off", "closed")
    other = stack.with_key()
    await set_policy(stack, "key", other.key_id, "demo", "mask", "closed")
    assert (await stack.caller.post(body={"prompt": "bomb"})).status == 200
    assert (await other.post(body={"prompt": "bomb"})).status == 200
    assert [body["prompt"] for body in stack.engine.bodies] == ["bomb", "****"]
    await set_policy(stack, "model", "fake-model", "demo", "listed", "closed")
    assert (await stack.caller.post(body={"prompt": "bomb"})).status == 400
    assert (await other.post(body={"prompt": "bomb"})).status == 200


async def test_entries_count_only_in_their_time(stack: Stack) -> None:
    now = time.time()
    past, future = Entry("past", valid_until=now - 1), Entry("future", valid_from=now + 3600)
    await with_list(stack, [past, future, Entry("present", valid_from=now - 1, valid_until=now + 3600)])
    statuses = [(await stack.caller.post(body={"prompt": word})).status for word in ("past", "present", "future")]
    assert statuses == [200, 400, 200]


async def test_a_broken_list_keeps_the_old_version_and_alarms(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    await with_list(stack, [Entry("first")])
    await with_list(stack, [Entry("second")])
    path = stack.gateway.settings.store_path
    with sqlite3.connect(path) as database:
        database.execute("UPDATE word_entries SET pattern = 'forged' WHERE version = 2")
        database.execute("UPDATE word_lists SET active_version = 1")
        database.execute("UPDATE word_state SET stamp = stamp + 1")
    await stack.gateway.words.refresh()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE word_lists SET active_version = 2")
        database.execute("UPDATE word_state SET stamp = stamp + 1")
    await stack.gateway.words.refresh()
    assert "demo@2" in str(stack.gateway.words.failure)
    assert "older ones stay in force" in caplog.text
    assert (await stack.caller.post(body={"prompt": "first"})).status == 400
    ready = await stack.caller.get("/ready")
    assert ready.status == 200
    assert "demo@2" in ready.body.decode()
    assert b"deepseek_gateway_word_lists_broken 1.0" in (await stack.caller.get("/metrics")).body
    assert RETRY_S > 0


async def test_a_list_that_never_loaded_lets_nothing_pass_unless_its_policy_says_open(state_dir) -> None:
    async with running_stack(state_dir) as stack:
        await with_list(stack, [Entry("first")])
        with sqlite3.connect(stack.gateway.settings.store_path) as database:
            database.execute("UPDATE word_entries SET pattern = 'forged'")
    async with running_stack(state_dir) as stack:
        reply = await stack.caller.post()
        assert (reply.status, reply.error["code"]) == (503, "content_filter_unavailable")
        await set_policy(stack, "all", "", "demo", "listed", "open")
        assert (await stack.caller.post()).status == 200


async def test_prompts_that_cannot_be_read_are_refused_where_words_are_blocked(stack: Stack) -> None:
    assert (await stack.caller.post("/v1/completions", {"prompt": [1, 2, 3]})).status == 200
    await with_list(stack, LIST)
    reply = await stack.caller.post("/v1/completions", {"prompt": [1, 2, 3]})
    assert (reply.status, reply.error["code"]) == (400, "content_filter")


async def test_large_requests_are_filtered_too(stack: Stack) -> None:
    await with_list(stack, [*LIST, Entry("[0-9]{16}", Level.MASK, match=Match.REGEX)])
    text = "clean words. " * 20_000
    assert (await stack.caller.post(body={"prompt": f"{text} bomb"})).status == 400
    assert (await stack.caller.post(body={"prompt": f"{text} 1234567890123456"})).status == 200
    assert stack.engine.bodies[0]["prompt"] == f"{text} {'*' * 16}"


async def test_a_new_version_comes_into_force_by_itself(stack: Stack) -> None:
    def write() -> None:
        words = stack.gateway.store.words
        words.activate("demo", words.add_version("demo", LIST, note="", by="test", now=0.0).version)

    await asyncio.to_thread(write)
    await until(lambda: stack.gateway.words.failure is None and stack.gateway.words.list_version != "")
    assert (await stack.caller.post(body={"prompt": "bomb"})).status == 400


async def test_a_trace_has_the_version_of_the_lists_and_the_hits_without_the_words(stack: Stack) -> None:
    await with_list(stack, LIST)
    masked = (await stack.caller.post(body={"prompt": "darn it"})).headers["x-request-id"]
    refused = (await stack.caller.post(body={"prompt": "bomb"})).headers["x-request-id"]

    async def trace(request_id: str) -> dict[str, Any]:
        await stack.gateway.ledger.flush()
        return await asyncio.to_thread(TraceService(stack.gateway.store).find, OPERATOR, request_id)

    version = stack.gateway.words.list_version
    for request_id, level, number in ((masked, "mask", 2), (refused, "block", 1)):
        life = await trace(request_id)
        (step,) = [step for step in life["steps"] if step["name"] == "words"]
        assert life["list_version"] == version
        assert step["detail"] == f"{level} in demo@1#{number} prompt 0-4"


async def test_a_trace_names_the_lists_that_judged_the_request_or_none(stack: Stack) -> None:
    ids = [(await stack.caller.post()).headers["x-request-id"]]
    await with_list(stack, LIST)
    ids.append((await stack.caller.post()).headers["x-request-id"])
    await stack.gateway.ledger.flush()
    find = TraceService(stack.gateway.store).find
    before, after = [(await asyncio.to_thread(find, OPERATOR, request_id))["list_version"] for request_id in ids]
    assert before == "none"
    assert after.startswith("demo@1#")


async def test_a_prompt_that_is_counted_for_a_limit_is_filtered_before(stack: Stack) -> None:
    await with_list(stack, LIST)
    caller = stack.with_key(tokens_per_minute=3000)
    refused = await caller.post(body={"prompt": "immeasurably " * 1000 + "bomb", "max_tokens": 8})
    assert (refused.status, refused.error["code"]) == (400, "content_filter")
    assert not stack.engine.paths
    body = {"prompt": "immeasurably " * 1000 + "darn", "max_tokens": 8, "fake": {"tokens": 1, "prompt_tokens": 1001}}
    assert (await caller.post(body=body)).status == 200
    counted, made = stack.engine.bodies
    assert counted["messages"][0]["content"].endswith("****")
    assert made["prompt"].endswith("****")
