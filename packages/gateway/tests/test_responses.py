"""OpenAI's /v1/responses, spoken by the real `openai` package."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response

from deepseek_gateway.testing.caller import next_event, until
from deepseek_gateway.testing.stack import Stack, running_stack
from deepseek_gateway.testing.talk import TALK, call, script

ASK: dict[str, Any] = {"model": "fake-model", "input": "a b c"}
USER: list[Any] = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = f"{stack.running.url}/v1"
    async with openai.AsyncOpenAI(api_key=stack.caller.key, base_url=base_url, max_retries=0) as made:
        yield made


def check_talk(response: Response) -> None:
    reasoning, message, first, second = response.output
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.content or []] == ["let me see"]
    assert message.type == "message"
    assert (message.status, response.output_text) == ("completed", "I look it up. 日本")
    assert first.type == second.type == "function_call"
    assert (first.call_id, first.name, json.loads(first.arguments)) == ("call_0", "weather", {"city": "Paris"})
    assert (second.call_id, json.loads(second.arguments)) == ("call_1", {"city": "Rome"})
    assert (response.status, response.model, response.error) == ("completed", "fake-model", None)
    assert response.usage is not None
    usage = response.usage
    assert (usage.input_tokens, usage.input_tokens_details.cached_tokens) == (7, 2)
    assert (usage.output_tokens, usage.total_tokens) == (len(TALK), 7 + len(TALK))


async def test_an_answer_in_one_piece_has_all_kinds_of_items(stack: Stack, client) -> None:
    fake = script(deltas=TALK, finish="tool_calls", prompt_tokens=7, cached_tokens=2)
    check_talk(await client.responses.create(**ASK, **fake, tools=[WEATHER]))
    row = await stack.row()
    assert (row.route, row.prompt_tokens, row.completion_tokens) == ("/v1/responses", 7, len(TALK))


async def test_a_stream_accumulates_to_the_same_response(stack: Stack, client) -> None:
    fake = script(deltas=TALK, finish="tool_calls", prompt_tokens=7, cached_tokens=2)
    async with client.responses.stream(**ASK, **fake, tools=[WEATHER]) as stream:
        events = [event async for event in stream]
        check_talk(await stream.get_final_response())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    row = await stack.row()
    assert (row.prompt_tokens, row.completion_tokens, row.accuracy) == (7, len(TALK), "exact")


async def test_raw_events_come_in_openais_order(client) -> None:
    deltas = [{"reasoning_content": "hm"}, {"content": "Hi"}, call(0, "", "weather"), call(0, "{}")]
    events = [event async for event in await client.responses.create(**ASK, **script(deltas=deltas), stream=True)]
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].response.status == events[1].response.status == "in_progress"
    assert events[0].response.id == events[-1].response.id
    assert events[9].item_id == events[10].item_id == events[13].item.id == events[-1].response.output[1].id
    assert events[16].arguments == "{}"


async def test_text_arrives_as_the_engine_makes_it(stack: Stack, client) -> None:
    stack.engine.allow()
    seen = 0
    async for event in await client.responses.create(**ASK, **script(tokens=3, gated=True), stream=True):
        if event.type == "response.output_text.delta":
            seen += 1
            assert event.delta.startswith(f"w{seen}")  # the engine waits for the next line: nothing was gathered
            stack.engine.allow()
    assert seen == 3


def test_the_synchronous_client_works(tmp_path) -> None:
    async def serve() -> None:
        async with running_stack(tmp_path / "state") as stack:
            await asyncio.to_thread(talk, stack.running.url, stack.caller.key)

    def talk(url: str, key: str | None) -> None:
        with openai.OpenAI(api_key=key, base_url=url) as sync:
            assert sync.responses.create(**ASK).output_text.startswith("w1 ")
            with sync.responses.stream(
                **ASK, **script(deltas=TALK, finish="tool_calls", prompt_tokens=7, cached_tokens=2)
            ) as stream:
                check_talk(stream.get_final_response())

    asyncio.run(serve())


class City(pydantic.BaseModel):
    name: str
    people: int


async def test_parse_gives_the_callers_own_type(stack: Stack, client) -> None:
    fake = script(deltas=[{"content": '{"name": "Paris",'}, {"content": '"people": 2000000}'}])
    parsed = await client.responses.parse(**ASK, **fake, text_format=City)
    assert parsed.output_parsed == City(name="Paris", people=2_000_000)
    async with client.responses.stream(**ASK, **fake, text_format=City) as stream:
        assert (await stream.get_final_response()).output_parsed == City(name="Paris", people=2_000_000)
    form = stack.engine.bodies[0]["response_format"]
    assert (form["type"], form["json_schema"]["name"], form["json_schema"]["strict"]) == ("json_schema", "City", True)
    assert set(form["json_schema"]["schema"]["properties"]) == {"name", "people"}


async def test_a_tool_loop_comes_to_its_end(stack: Stack, client) -> None:
    conversation: list[Any] = [{"role": "user", "content": "a b c"}]
    answer = await client.responses.create(
        model="fake-model", input=conversation, tools=[WEATHER], **script(deltas=TALK, finish="tool_calls")
    )
    conversation += answer.output
    conversation += [
        {"type": "function_call_output", "call_id": item.call_id, "output": item.arguments}
        for item in answer.output
        if item.type == "function_call"
    ]
    last = await client.responses.create(
        model="fake-model", input=conversation, tools=[WEATHER], **script(deltas=[{"content": "Sunny."}])
    )
    assert last.output_text == "Sunny."
    user, assistant, first, second = stack.engine.bodies[-1]["messages"]
    assert user == {"role": "user", "content": "a b c"}
    assert (assistant["reasoning_content"], assistant["content"]) == ("let me see", "I look it up. 日本")
    assert [made["id"] for made in assistant["tool_calls"]] == ["call_0", "call_1"]
    assert first == {"role": "tool", "tool_call_id": "call_0", "content": '{"city": "Paris"}'}
    assert second == {"role": "tool", "tool_call_id": "call_1", "content": '{"city": "Rome"}'}


async def test_everything_asked_for_reaches_the_engine(stack: Stack, client) -> None:
    response = await client.responses.create(
        model="fake-model",
        instructions="Be kind.",
        input=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "input_text", "text": "y"}]},
            {"role": "assistant", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"type": "message", "role": "user", "content": "z"},
        ],
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        reasoning={"effort": "high", "summary": "auto"},
        text={"format": {"type": "json_object"}, "verbosity": "low"},
        tools=[WEATHER, {**WEATHER, "name": "news"}],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
        parallel_tool_calls=False,
        include=["reasoning.encrypted_content"],
        store=False,
        metadata={"a": "b"},
        user="u-1",
        extra_body={"seed": 7},
    )
    (sent,) = stack.engine.bodies
    function = {name: WEATHER[name] for name in ("name", "description", "parameters", "strict")}
    assert sent == {
        "model": "fake-model",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "xy"},
            {"role": "assistant", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "z"},
        ],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning_effort": "high",
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "user": "u-1",
        "seed": 7,
    }
    assert (response.instructions, response.metadata, response.temperature) == ("Be kind.", {"a": "b"}, 0.5)
    assert (response.max_output_tokens, response.store, response.user) == (9, False, "u-1")
    assert [tool.name for tool in response.tools] == ["weather", "news"]


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
async def test_the_status_says_how_it_ended(client, finish: str, status: str, reason: str | None) -> None:
    whole = await client.responses.create(**ASK, **script(tokens=1, finish=finish))
    events = [e async for e in await client.responses.create(**ASK, **script(tokens=1, finish=finish), stream=True)]
    assert events[-1].type == f"response.{status}"
    for response in (whole, events[-1].response):
        assert response.status == response.output[-1].status == status
        assert (response.incomplete_details and response.incomplete_details.reason) == reason


BAD_BODIES: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "function_call", "name": "f", "call_id": "1"}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"truncation": [1]}, "truncation"),
    ({"input": [{"role": ["user"], "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": ["input_text"]}]}]}, "input[0].content[0]"),
    ({"tool_choice": {"type": ["function"]}}, "tool_choice"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tool_choice": "some"}, "tool_choice"),
    ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"reasoning": "high"}, "reasoning"),
    ({"instructions": 3}, "instructions"),
    ({"model": 3}, "model"),
]


@pytest.mark.parametrize(
    ("change", "named"), BAD_BODIES, ids=[f"{named}-{at}" for at, (_, named) in enumerate(BAD_BODIES)]
)
async def test_what_is_wrong_is_refused_by_name(stack: Stack, change, named: str) -> None:
    reply = await stack.caller.post("/v1/responses", {**ASK, **change})
    assert (reply.status, reply.error["param"]) == (400, named)
    assert named in reply.error["message"]
    assert stack.engine.bodies == []


async def test_errors_are_the_packages_exceptions(stack: Stack, client) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is stored here"):
        await client.responses.create(**ASK, previous_response_id="resp_1")
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="dsk_wrong").responses.create(**ASK)
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(**{**ASK, "model": "unknown"})
    limited = client.with_options(api_key=stack.running.key(requests_per_minute=1))
    await limited.responses.create(**ASK)
    with pytest.raises(openai.RateLimitError):
        await limited.responses.create(**ASK)
    for stream in (False, True):
        with pytest.raises(openai.UnprocessableEntityError, match="the script says so"):
            await client.responses.create(**ASK, **script(status=422), stream=stream)


@pytest.mark.parametrize("fault", [{"error_after": 2}, {"cut_after": 2}])
async def test_a_stream_that_fails_ends_in_an_error_and_a_failed_response(stack: Stack, client, fault) -> None:
    fake = script(tokens=4, prompt_tokens=3, gated=True, **fault)
    stack.engine.allow()
    events = []
    async for event in await client.responses.create(**ASK, **fake, stream=True):
        events.append(event)
        if event.type == "response.output_text.delta":
            stack.engine.allow()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    error, failed = next(e for e in events if e.type == "error"), events[-1]
    assert error.message
    assert (failed.type, failed.response.status, failed.response.error.code) == (
        "response.failed",
        "failed",
        "server_error",
    )
    assert failed.response.output[0].content[0].text.startswith("w1 ")
    assert failed.response.output[0].status == "incomplete"


async def test_leaving_a_stream_stops_the_engine_and_bills_exactly(stack: Stack, client) -> None:
    stack.engine.allow(3)
    async for event in await client.responses.create(**ASK, **script(tokens=100, gated=True), stream=True):
        if event.type == "response.output_text.delta" and event.delta.startswith("w3"):
            break
    await client.close()
    row = await stack.row()
    assert (row.status, row.end_reason, row.accuracy) == ("cancelled", "client_disconnect", "exact")
    assert (row.prompt_tokens, row.completion_tokens) == (stack.engine.truth.prompt, 3)


async def test_a_silent_stream_carries_comments_that_the_package_skips(state_dir) -> None:
    async with running_stack(state_dir, keep_alive_s=0.1) as stack:
        body = {**ASK, "stream": True, "fake": {"tokens": 1, "gated": True}}
        async with stack.caller.open("/v1/responses", body) as answer:
            seen = [await next_event(answer) for _ in range(3)]
            assert seen[-1] == ": keep-alive"
            stack.engine.allow()
        await until(lambda: stack.gateway.running == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_comes_back_from_clients_that_keep_no_text(stack: Stack, client, stream: bool) -> None:
    include = ["reasoning.encrypted_content"]
    fake = script(deltas=TALK, finish="tool_calls")
    answer = await client.responses.create(**ASK, **fake, include=include, store=False, stream=stream)
    response = [event async for event in answer][-1].response if stream else answer
    assert (response.status, response.completed_at >= response.created_at) == ("completed", True)
    kept = response.output[0]
    assert kept.encrypted_content
    back = {"type": "reasoning", "id": kept.id, "summary": [], "encrypted_content": kept.encrypted_content}
    called = [item.to_dict() for item in response.output[2:]]
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"} for call in called]
    await client.responses.create(model="fake-model", input=[*USER, back, *called, *results])
    assert stack.engine.bodies[-1]["messages"][1]["reasoning_content"] == "let me see"


async def test_reasoning_that_only_its_maker_can_read_says_nothing(stack: Stack, client) -> None:
    for sealed in ("gAAAAABo", "text:%", "text:/w==", 7):
        item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed}
        await client.responses.create(model="fake-model", input=[*USER, item, *USER])
        assert [message["role"] for message in stack.engine.bodies[-1]["messages"]] == ["user", "user"]
