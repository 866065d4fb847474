"""Functions as tools, and the loop that calls them."""

import asyncio
import json
import threading
import warnings
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

import deepseek_client as ds
from deepseek_client.tools import strict_schema


class Unit(StrEnum):
    C = "C"
    F = "F"


class Place(BaseModel):
    name: str
    near: "list[Place]" = []


@ds.tool
def weather(city: str, unit: Literal["C", "F"] = "C", days: Annotated[int, Field(ge=1, le=7)] = 1) -> dict[str, Any]:
    """The weather in a city,
    as it will be.

    More about it.

    Args:
        city: its name,
            as people say it.
        unit (str): of the temperature.

    Returns:
        what it will be.
    """
    return {"city": city, "unit": unit, "days": days}


def test_a_tool_is_described_by_its_signature_and_docstring():
    assert weather.to_param() == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city, as it will be.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "its name, as people say it."},
                    "unit": {"type": "string", "enum": ["C", "F"], "description": "of the temperature."},
                    "days": {"type": "integer", "minimum": 1, "maximum": 7},
                },
                "required": ["city", "unit", "days"],
                "additionalProperties": False,
            },
        },
    }
    assert weather("Paris") == {"city": "Paris", "unit": "C", "days": 1}


def test_arguments_become_what_the_function_declares():
    @ds.tool(name="where", description="A place.")
    def find(place: Place, unit: Unit | None = None) -> object:
        return place, unit

    assert (find.name, find.description, find.is_strict) == ("where", "A place.", True)
    place = find.bind('{"place": {"name": "a", "near": [{"name": "b", "near": []}]}, "unit": "F"}')["place"]
    assert place.near[0] == Place(name="b")
    assert find.bind('{"place": {"name": "a"}}').keys() == {"place"}
    for wrong, fault in [
        ("[1]", "object"),
        ('{"place"', "EOF"),
        ("", "place: Field required"),
        ('{"place": {"name": "a"}, "other": 1}', "other"),
    ]:
        with pytest.raises(ds.ToolArgumentsError, match=fault):
            find.bind(wrong)


def test_what_cannot_be_strict_says_why():
    @ds.tool
    def free(anything: Any, table: dict[str, int], pair: tuple[int, str]) -> None: ...

    assert not free.is_strict
    assert "strict" not in free.to_param()["function"]
    assert free.obstacles == (
        "anything: it has no type",
        "table: any key is allowed",
        "pair: its items have a type each",
    )

    @ds.tool(strict=False)
    def loose(x: int) -> None: ...

    assert loose.obstacles == ("strict=False",)
    assert loose.parameters["required"] == ["x"]


def test_a_type_that_holds_itself_keeps_its_definition():
    found = strict_schema(Place.model_json_schema() | {})
    assert found.is_strict
    assert found.schema["$defs"]["Place"]["required"] == ["name", "near"]


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": ["string", "null"], "maxLength": 3}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"allOf": [{"type": "integer", "minimum": 1}], "title": "T"}, {"type": "integer", "minimum": 1}),
        ({"oneOf": [{"type": "string", "format": "date"}]}, {"anyOf": [{"type": "string"}]}),
        ({"type": "string", "format": "email"}, {"type": "string", "format": "email"}),
        ({"type": "object"}, {"type": "object", "properties": {}, "required": [], "additionalProperties": False}),
        ({"enum": ["a", 1]}, {"enum": ["a", 1]}),
        ({"type": "array", "items": {"const": 1}, "minItems": 2}, {"type": "array", "items": {"const": 1}}),
    ],
)
def test_schemas_take_their_strict_form(schema, strict):
    assert strict_schema(schema).schema == strict
    assert strict_schema(strict).schema == strict


def test_functions_that_cannot_be_tools_are_refused():
    def untyped(x): ...
    def positional(x: int, /): ...
    def rest(*numbers: int): ...
    def hidden(_x: int): ...

    for function, fault in [(untyped, "no type"), (positional, "by name"), (rest, "by name"), (hidden, "begin with _")]:
        with pytest.raises(ds.ConfigurationError, match=fault):
            ds.tool(function)
    with pytest.raises(ds.ConfigurationError, match="1 to 64 letters"):
        ds.tool(name="no spaces")(weather.function)


def calls(kit, *wanted: tuple[str, str], reasoning: str | None = None, content: str | None = None) -> Any:
    tool_calls = [
        {"id": f"call-{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(wanted)
    ]
    message = {"role": "assistant", "content": content, "tool_calls": tool_calls}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return kit.reply(kit.CHAT | {"choices": [choice]})


async def test_the_loop_calls_tools_until_the_model_answers(server, connect, kit):
    server.script(
        calls(kit, ("weather", '{"city": "Paris"}'), ("weather", '{"city": "Rome", "unit": "F"}'), reasoning="Two."),
        calls(kit, ("add", '{"a": 1, "b": 2}'), content="So far."),
        kit.reply(kit.CHAT),
    )

    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    chat = connect().chat.completions
    run = await kit.settle(chat.run_tools(messages=kit.MESSAGES, tools=[weather, add], temperature=0.0, model="m"))
    assert (run.text, run.rounds) == ("Hello", 3)
    assert [message["role"] for message in run.messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    second = server.requests[1].json
    assert second["messages"][1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Two.",
        "tool_calls": [
            {"id": "call-0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
            {
                "id": "call-1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Rome", "unit": "F"}'},
            },
        ],
    }
    assert [(m["tool_call_id"], json.loads(m["content"])["city"]) for m in second["messages"][2:]] == [
        ("call-0", "Paris"),
        ("call-1", "Rome"),
    ]
    assert second["temperature"] == 0.0
    assert {each["function"]["name"] for each in second["tools"]} == {"weather", "add"}
    assert server.requests[2].json["messages"][-1] == {"role": "tool", "tool_call_id": "call-0", "content": "3"}


async def test_failures_are_told_to_the_model(server, connect, kit):
    def broken(x: int) -> int:
        raise RuntimeError("no luck")

    server.script(calls(kit, ("broken", '{"x": 1}'), ("broken", '{"x": "a"}'), ("nothing", "{}")), kit.reply(kit.CHAT))
    await kit.settle(connect().chat.completions.run_tools(messages=kit.MESSAGES, tools=[broken]))
    told = [json.loads(message["content"])["error"] for message in server.requests[1].json["messages"][2:]]
    assert told[0] == "RuntimeError: no luck"
    assert told[1].startswith("ToolArgumentsError: the arguments of broken do not fit: x:")
    assert told[2] == "ToolArgumentsError: there is no tool 'nothing', only: broken"


async def test_a_model_that_never_answers_is_stopped(server, connect, kit):
    server.script(calls(kit, ("weather", '{"city": "Paris"}')))
    with pytest.raises(ds.ToolRoundsError, match="max_rounds=2") as caught:
        await kit.settle(connect().chat.completions.run_tools(messages=kit.MESSAGES, tools=[weather], max_rounds=2))
    assert len(caught.value.messages) == 5
    assert caught.value.snapshot.choices[0].message.tool_calls
    assert len(server.requests) == 2


async def test_a_required_call_is_required_once_and_never_while_thinking(server, connect, kit):
    server.script(calls(kit, ("weather", '{"city": "Paris"}')), kit.reply(kit.CHAT))
    chat = connect().chat.completions
    await kit.settle(chat.run_tools(messages=kit.MESSAGES, tools=[weather], tool_choice="required"))
    assert [request.json["tool_choice"] for request in server.requests] == ["required", "auto"]
    with pytest.warns(UserWarning, match="tool_choice is sent as auto"):
        await kit.settle(
            chat.run_tools(messages=kit.MESSAGES, tools=[weather], tool_choice="required", reasoning_effort="high")
        )
    assert server.requests[-1].json["tool_choice"] == "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await kit.settle(
            chat.run_tools(messages=kit.MESSAGES, tools=[weather], tool_choice="required", reasoning_effort="none")
        )


async def test_wrong_uses_are_refused_before_anything_is_sent(server, connect, kit):
    chat = connect().chat.completions
    for given, fault in [
        ({"tools": []}, "tools is empty"),
        ({"tools": [weather, weather]}, "two tools"),
        ({"tools": [weather], "max_rounds": 0}, "max_rounds=0"),
    ]:
        with pytest.raises(ds.ConfigurationError, match=fault):
            await kit.settle(chat.run_tools(messages=kit.MESSAGES, **given))
    assert not server.requests


async def test_async_tools_run_together_and_blocking_ones_in_threads(server, kit):
    both = asyncio.Barrier(2)
    threads: list[int] = []

    async def meet(n: int) -> int:
        await both.wait()
        return n

    def block(n: int) -> int:
        threads.append(threading.get_ident())
        return n

    server.script(calls(kit, ("meet", '{"n": 1}'), ("block", '{"n": 2}'), ("meet", '{"n": 3}')), kit.reply(kit.CHAT))
    async with ds.AsyncDeepSeek(base_url=server.url) as client:
        run = await client.chat.completions.run_tools(messages=kit.MESSAGES, tools=[meet, block])
    assert [message["content"] for message in run.messages if message["role"] == "tool"] == ["1", "2", "3"]
    assert threads != [threading.get_ident()]
    with ds.DeepSeek(base_url=server.url) as client, pytest.raises(ds.ConfigurationError, match="coroutine function"):
        client.chat.completions.run_tools(messages=kit.MESSAGES, tools=[meet])
