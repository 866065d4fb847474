"""Anthropic's /v1/messages, spoken by the real `anthropic` package."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, TextBlock, ThinkingBlock, ToolUseBlock

from deepseek_gateway.testing.caller import next_event, until
from deepseek_gateway.testing.stack import Stack, running_stack
from deepseek_gateway.testing.talk import TALK, call, script

HELLO: list[Any] = [{"role": "user", "content": "a b c"}]
ASK: dict[str, Any] = {"model": "fake-model", "max_tokens": 64, "messages": HELLO}
WEATHER: Any = {
    "name": "weather",
    "description": "the weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key=stack.caller.key, base_url=stack.running.url, max_retries=0) as made:
        yield made


def check_talk(message: Message) -> None:
    thinking, text, first, second = message.content
    assert isinstance(thinking, ThinkingBlock)
    assert thinking.thinking == "let me see"
    assert thinking.signature
    assert isinstance(text, TextBlock)
    assert text.text == "I look it up. 日本"
    assert isinstance(first, ToolUseBlock)
    assert (first.id, first.name, first.input) == ("call_0", "weather", {"city": "Paris"})
    assert isinstance(second, ToolUseBlock)
    assert (second.id, second.input) == ("call_1", {"city": "Rome"})
    assert (message.stop_reason, message.stop_sequence) == ("tool_use", None)
    assert message.model == "fake-model"
    assert message.id.startswith("msg_")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 2, len(TALK))


async def test_an_answer_in_one_piece_has_all_kinds_of_blocks(stack: Stack, client) -> None:
    fake = script(deltas=TALK, finish="tool_calls", prompt_tokens=7, cached_tokens=2)
    message = await client.messages.create(**ASK, **fake, tools=[WEATHER])
    check_talk(message)
    assert message._request_id == (await stack.row()).request_id
    assert (await stack.row()).route == "/v1/messages"


async def test_a_stream_has_the_same_blocks_and_accumulates_to_the_same_message(stack: Stack, client) -> None:
    fake = script(deltas=TALK, finish="tool_calls", prompt_tokens=7, cached_tokens=2)
    kinds: list[str] = []
    async with client.messages.stream(**ASK, **fake, tools=[WEATHER]) as stream:
        async for event in stream:
            kinds.append(event.type)
        check_talk(await stream.get_final_message())
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    row = await stack.row()
    assert (row.prompt_tokens, row.completion_tokens, row.accuracy) == (7, len(TALK), "exact")


async def test_raw_events_come_in_anthropics_order_with_the_prompts_usage_first(client) -> None:
    fake = script(deltas=[{"content": "Hi"}, {"content": "!"}], prompt_tokens=3)
    events = [event async for event in await client.messages.create(**ASK, **fake, stream=True)]
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert (events[0].message.usage.input_tokens, events[0].message.usage.output_tokens) == (3, 0)
    assert events[0].message.content == []
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens) == ("end_turn", 2)


async def test_text_arrives_as_the_engine_makes_it(stack: Stack, client) -> None:
    stack.engine.allow()
    async with client.messages.stream(**ASK, **script(tokens=3, gated=True)) as stream:
        seen = 0
        async for text in stream.text_stream:
            seen += 1
            assert text.startswith(f"w{seen}")  # the engine waits for the next line: nothing was gathered
            stack.engine.allow()
    assert seen == 3


def test_the_synchronous_client_works(tmp_path) -> None:
    async def serve() -> None:
        async with running_stack(tmp_path / "state") as stack:
            await asyncio.to_thread(talk, stack.running.url, stack.caller.key)

    def talk(url: str, key: str | None) -> None:
        with anthropic.Anthropic(api_key=key, base_url=f"{url}/anthropic") as sync:
            assert sync.messages.create(**ASK).content[0].text.startswith("w1 ")
            with sync.messages.stream(**ASK, **script(deltas=TALK, finish="tool_calls")) as stream:
                assert "".join(stream.text_stream) == "I look it up. 日本"

    asyncio.run(serve())


async def test_a_tool_loop_comes_to_its_end(stack: Stack, client) -> None:
    messages = list(HELLO)
    fake = script(deltas=TALK, finish="tool_calls")
    answer = await client.messages.create(model="fake-model", max_tokens=64, messages=messages, tools=[WEATHER], **fake)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": f"{block.input}"}]}
        for block in answer.content
        if block.type == "tool_use"
    ]
    results[1] |= {"is_error": True, "content": "no such city"}
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    last = await client.messages.create(
        model="fake-model", max_tokens=64, messages=messages, tools=[WEATHER], **script(deltas=[{"content": "Sunny."}])
    )
    assert last.content[0].text == "Sunny."
    user, assistant, first, second = stack.engine.bodies[-1]["messages"]
    assert user == {"role": "user", "content": "a b c"}
    assert assistant["reasoning_content"] == "let me see"
    assert assistant["content"] == "I look it up. 日本"
    assert [json.loads(made["function"]["arguments"]) for made in assistant["tool_calls"]] == [
        {"city": "Paris"},
        {"city": "Rome"},
    ]
    assert first == {"role": "tool", "tool_call_id": "call_0", "content": "{'city': 'Paris'}"}
    assert second == {"role": "tool", "tool_call_id": "call_1", "content": "Error: no such city"}


async def test_everything_asked_for_reaches_the_engine(stack: Stack, client) -> None:
    await client.messages.create(
        model="fake-model",
        max_tokens=9,
        system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}],
        stop_sequences=["END"],
        metadata={"user_id": "u-1"},
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        service_tier="auto",
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 7},
    )
    (sent,) = stack.engine.bodies
    assert sent == {
        "model": "fake-model",
        "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "x\ny"}],
        "stop": ["END"],
        "user": "u-1",
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "reasoning_effort": "high",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "the weather of a city",
                    "parameters": WEATHER["input_schema"],
                },
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "seed": 7,
    }


async def test_an_answer_may_be_begun_by_the_caller(stack: Stack, client) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "The answer is"}]
    await client.messages.create(model="fake-model", max_tokens=9, messages=messages)
    assert stack.engine.bodies[0]["messages"][-1] == {"role": "assistant", "content": "The answer is", "prefix": True}


async def test_hidden_thinking_is_a_block_without_text(client) -> None:
    fake = script(deltas=[{"reasoning_content": "secret"}, {"content": "Hi"}])
    thinking = {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}
    whole = await client.messages.create(**ASK, **fake, thinking=thinking)
    async with client.messages.stream(**ASK, **fake, thinking=thinking) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert message.content[0].thinking == ""


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("content_filter", "refusal")],
)
async def test_stop_reasons_are_anthropics(client, finish: str, reason: str) -> None:
    assert (await client.messages.create(**ASK, **script(tokens=1, finish=finish))).stop_reason == reason
    async with client.messages.stream(**ASK, **script(tokens=1, finish=finish)) as stream:
        assert (await stream.get_final_message()).stop_reason == reason


BAD_BODIES: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
        "messages[0].content[0]",
    ),
    (
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
            ]
        },
        "messages",
    ),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"tool_choice": {"type": ["auto"]}}, "tool_choice.type"),
    ({"tools": [{"type": ["custom"], "name": "f"}]}, "tools[0].type"),
    ({"thinking": {"type": ["enabled"]}}, "thinking.type"),
    ({"thinking": {"type": "deep"}}, "thinking.type"),
    ({"thinking": "deep"}, "thinking"),
    ({"stop_sequences": "END"}, "stop_sequences"),
    ({"system": [{"type": "image"}]}, "system[0]"),
    ({"metadata": {"user_id": 3}}, "metadata.user_id"),
    ({"container": "c"}, "container"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"model": 3}, "model"),
]


@pytest.mark.parametrize(("change", "named"), BAD_BODIES, ids=[named for _, named in BAD_BODIES])
async def test_what_is_wrong_is_refused_by_name_in_anthropics_shape(stack: Stack, change, named: str) -> None:
    reply = await stack.caller.post("/v1/messages", {**ASK, **change})
    assert reply.status == 400
    assert reply.json["type"] == "error"
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert named in reply.json["error"]["message"]
    assert stack.engine.bodies == []


async def test_errors_are_the_packages_exceptions(stack: Stack, client) -> None:
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        await client.messages.create(**{**ASK, "messages": []})
    with pytest.raises(anthropic.AuthenticationError):
        await client.with_options(api_key="dsk_wrong").messages.create(**ASK)
    with pytest.raises(anthropic.PermissionDeniedError):
        await client.with_options(api_key=stack.running.key(models=("other",))).messages.create(**ASK)
    with pytest.raises(anthropic.NotFoundError, match="no model"):
        await client.messages.create(**{**ASK, "model": "unknown"})
    limited = client.with_options(api_key=stack.running.key(requests_per_minute=1))
    await limited.messages.create(**ASK)
    with pytest.raises(anthropic.RateLimitError) as limit:
        await limited.messages.create(**ASK)
    assert limit.value.response.headers["retry-after"]
    assert limit.value.body["error"]["type"] == "rate_limit_error"
    with pytest.raises(anthropic.UnprocessableEntityError, match="the script says so"):
        await client.messages.create(**ASK, **script(status=422))
    with pytest.raises(anthropic.UnprocessableEntityError, match="the script says so"):
        await client.messages.create(**ASK, **script(status=422), stream=True)


async def test_an_error_within_a_stream_is_raised(stack: Stack, client) -> None:
    for fault in ({"error_after": 2}, {"cut_after": 2}):
        with pytest.raises(anthropic.APIStatusError) as failure:
            async for _ in await client.messages.create(**ASK, **script(tokens=4, **fault), stream=True):
                pass
        assert failure.value.body["type"] == "error"
        assert failure.value.body["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/messages/x", "POST"), ("/anthropic/nothing", "POST"), ("/v1/messages", "PUT")]
)
async def test_refusals_beside_the_route_have_anthropics_shape_too(stack: Stack, path: str, method: str) -> None:
    async with stack.caller.open(path, {}, method=method) as answer:
        assert answer.status in {404, 405}
        assert (await answer.json())["type"] == "error"
        assert answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_x_api_key_is_as_good_as_authorization(stack: Stack) -> None:
    nobody = stack.caller.with_key(None)
    key = {"x-api-key": stack.caller.key or ""}
    for path, body in (("/v1/messages", ASK), ("/v1/generate", {"prompt": "a"}), ("/anthropic/v1/messages", ASK)):
        assert (await nobody.post(path, body, headers=key)).status == 200
        assert (await nobody.post(path, body, headers={"x-api-key": "dsk_x"})).status == 401
    assert (await nobody.post("/v1/messages", ASK)).json["error"]["type"] == "authentication_error"


async def test_leaving_a_stream_stops_the_engine_and_bills_exactly(stack: Stack, client) -> None:
    stack.engine.allow(3)
    async with client.messages.stream(**ASK, **script(tokens=100, gated=True)) as stream:
        async for text in stream.text_stream:
            if text.startswith("w3"):
                break
    row = await stack.row()
    assert (row.status, row.end_reason, row.accuracy) == ("cancelled", "client_disconnect", "exact")
    assert (row.prompt_tokens, row.completion_tokens) == (stack.engine.truth.prompt, 3)


async def test_a_silent_stream_carries_pings_that_the_package_skips(state_dir) -> None:
    async with running_stack(state_dir, keep_alive_s=0.1) as stack:
        body = {**ASK, "stream": True, "fake": {"tokens": 1, "queued": True}}
        async with stack.caller.open("/v1/messages", body) as answer:
            assert await next_event(answer) == 'event: ping\ndata: {"type":"ping"}'
            stack.engine.allow()
        async with anthropic.AsyncAnthropic(api_key=stack.caller.key, base_url=stack.running.url) as client:
            stream = asyncio.create_task(client.messages.create(**ASK, **script(queued=True), stream=True))
            kinds = [event.type async for event in await stream] if stack.engine.allow(99) is None else []
        assert kinds[0] == "message_start"
        await until(lambda: stack.gateway.running == 0)


async def test_a_server_that_tells_its_stop_string_gives_the_stop_sequence(stack: Stack, client, monkeypatch) -> None:
    monkeypatch.setattr("deepseek_gateway.testing.dialects.Wire.word", vllm_word)
    async with client.messages.stream(**ASK, **script(tokens=1), stop_sequences=["END"]) as stream:
        message = await stream.get_final_message()
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


def vllm_word(self, text: str, finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish, "stop_reason": finish and "END"}
    return {"id": self.id, "object": "chat.completion.chunk", "model": self.model, "choices": [choice]}


async def test_arguments_that_are_no_json_are_kept_for_the_model_to_see(client) -> None:
    fake = script(deltas=[call(0, "", "weather"), call(0, "{oops")], finish="tool_calls")
    message = await client.messages.create(**ASK, **fake)
    assert message.content[0].input == {"INVALID_JSON": "{oops"}


@pytest.mark.parametrize("under", ["", "/anthropic"])
async def test_models_are_listed_and_found_as_anthropics(stack: Stack, under: str) -> None:
    url = f"{stack.running.url}{under}"
    async with anthropic.AsyncAnthropic(api_key=stack.caller.key, base_url=url, max_retries=0) as client:
        page = await client.models.list()
        assert (page.has_more, page.first_id, page.last_id) == (False, "fake-model", "fake-model")
        (model,) = page.data
        assert (model.type, model.id, model.display_name) == ("model", "fake-model", "fake-model")
        assert model.created_at.year == 1970
        assert await client.models.retrieve("fake-model") == model
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.models.retrieve("other")
        assert isinstance(missing.value.body, dict)
        assert missing.value.body["error"]["type"] == "not_found_error"
    async with anthropic.AsyncAnthropic(api_key="dsk_no", base_url=url, max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
            await stranger.models.list()
