"""Tool calls that the request forces, over HTTP with the openai package: the model has random weights, so that only the
grammar can make them right."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import jsonschema
import openai
import pytest
import pytest_asyncio
import tokenizers

from deepseek_engine.async_engine import AsyncEngine
from deepseek_engine.chat.template_encoder import TemplateEncoder
from deepseek_engine.chat_template import ChatTemplate
from deepseek_engine.config import EngineConfig
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.text_parsers.markup import FORMATS
from deepseek_engine.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEMPLATE = """\
{% if tools %}{{ tools | length }}{% endif %}
{%- for message in messages %}{{ message.content }}{% endfor %}
{%- if thinking is defined %}{{ '<think>' if thinking else '</think>' }}{% endif %}"""
CONSTRAINED = sorted(set(FORMATS) - {"plain", "think", "llama3-pythonic"})
THINKING = sorted(name for name in CONSTRAINED if FORMATS[name].reasoning is not None)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "tags": {"type": "array", "items": {"enum": ["x", 1, None]}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"weather": PARAMETERS, "now": {"type": "object", "additionalProperties": False}}


def tool(name: str, **more: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMAS[name], **more}}


TOOLS = [tool("weather"), tool("now")]
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory, serve: Any) -> AsyncIterator[dict[str, Any]]:
    """One server a format, all over the same core."""
    folder = str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), TinyModel(max_position_embeddings=2048)))
    text = (
        load_tokenizer(folder)._backend.to_str().replace("<|endoftext|>", "<think>").replace("<|im_start|>", "</think>")
    )
    backend = tokenizers.Tokenizer.from_str(text)
    engine = await AsyncEngine.start(EngineConfig(model=folder, dtype="float32", num_threads=1))
    async with AsyncExitStack() as stack:
        found: dict[str, Any] = {}
        for name in [*CONSTRAINED, "llama3-pythonic"]:
            encoder = TemplateEncoder(ChatTemplate(TEMPLATE), FORMATS[name])
            tokenizer = Tokenizer(backend, eos_token_ids=(258,), chat_encoder=encoder)
            found[name] = await stack.enter_async_context(serve(engine, tokenizer, model_path=folder))
            found[name].client.timeout = 60
            # one process for trials is enough
            found[name].state.grammars = found[CONSTRAINED[0]].state.grammars
        yield found


def client_of(server: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def check_calls(calls: Any) -> None:
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("name", CONSTRAINED)
async def test_a_required_call_is_made_whole_and_streamed_in_every_format(servers: Any, name: str):
    fields: Any = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 1500, "temperature": 0.8}
    async with client_of(servers[name]) as client:
        answer = await client.chat.completions.create(
            **fields, tool_choice="required", parallel_tool_calls=False, seed=1
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls", choice
        assert not choice.message.content
        assert len(choice.message.tool_calls or ()) == 1
        check_calls(choice.message.tool_calls)
        async with client.chat.completions.stream(**fields, tool_choice=NAMED, seed=2) as stream:
            deltas = [event async for event in stream if event.type == "tool_calls.function.arguments.delta"]
            final = (await stream.get_final_completion()).choices[0]
    assert final.finish_reason == "tool_calls"
    assert [call.function.name for call in final.message.tool_calls or ()] == ["weather"]
    check_calls(final.message.tool_calls)
    assert len(deltas) > 5


@pytest.mark.parametrize("name", CONSTRAINED)
async def test_several_calls_in_one_answer_all_fit(servers: Any, name: str):
    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 500, "n": 3, "seed": 3}
    answer = (await servers[name].post(CHAT, **body, tool_choice="required")).json()
    calls = [call for choice in answer["choices"] for call in choice["message"].get("tool_calls", ())]
    for call in calls:
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])
    assert len(calls) > 1, "a random model seldom ends its list of calls, but makes some"


@pytest.mark.parametrize("name", THINKING)
async def test_a_required_call_begins_behind_reasoning_that_a_budget_ends(servers: Any, name: str):
    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 500, "tool_choice": NAMED, "seed": 5}
    closed = (await servers[name].post(CHAT, **body, thinking={"type": "disabled"})).json()["choices"][0]
    assert closed["finish_reason"] == "tool_calls"
    answer = (await servers[name].post(CHAT, **body, thinking={"type": "enabled", "budget_tokens": 8})).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls", choice
    assert not choice["message"]["content"]
    (call,) = choice["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 8


@pytest.mark.parametrize("budget", [0, 1, 9])
async def test_a_schema_begins_behind_reasoning_that_a_budget_ends(servers: Any, budget: int):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    body = {"messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    thinking = {"type": "enabled", "budget_tokens": budget}
    answer = (await servers["deepseek-r1"].post(CHAT, **body, max_tokens=300, thinking=thinking, seed=1)).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop", choice
    jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == budget


TAG = {
    "type": "tag",
    "begin": "<f=",
    "content": {"type": "json_schema", "json_schema": {"type": "integer", "minimum": 0, "maximum": 9}},
    "end": ">",
}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "structural_tag", "format": TAG}},
        {"structured_outputs": {"structural_tag": json.dumps({"type": "structural_tag", "format": TAG})}},
        {
            "response_format": {
                "type": "structural_tag",
                "format": {"type": "repeat", "min": 2, "max": 2, "content": TAG},
            }
        },
    ],
    ids=["response_format", "structured_outputs", "repeated"],
)
async def test_a_structural_tag_is_followed(servers: Any, fields: dict[str, Any]):
    answer = (await servers["hermes"].post(CHAT, messages=MESSAGES, max_tokens=50, **fields)).json()
    assert re.fullmatch(r"(<f=\d>){1,2}", answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ({}, "format is missing"),
        ({"format": {"type": "token", "token": 5}}, "format.type='token'"),
        ({"format": {**TAG, "end": None}}, "format.end must be a string"),
        ({"format": {**TAG, "content": {"type": "json_schema", "json_schema": {"not": {}}}}}, "not is not supported"),
        ({"format": {"type": "triggered_tags", "triggers": ["x"], "tags": [TAG]}}, "exactly one trigger"),
        ({"structures": [{"begin": "<f=", "schema": {}, "end": ">"}], "triggers": "<f"}, "triggers must be a list"),
        ({"format": {"type": "repeat", "min": 0, "max": 10**6, "content": TAG}}, "whole numbers up to"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_wrong_structural_tag_gets_400_with_the_place(servers: Any, tag: dict[str, Any], message: str):
    answer = await servers["hermes"].post(CHAT, messages=MESSAGES, response_format={"type": "structural_tag", **tag})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
    assert message in answer.json()["error"]["message"]


async def test_beside_a_strict_tool_text_is_free(servers: Any):
    server = servers["hermes"]
    (less,) = server.state.tokenizer.encode("<")
    # even where each letter might begin a call
    body = {"messages": MESSAGES, "tools": [tool("weather", strict=True)], "max_tokens": 100, "logit_bias": {less: 100}}
    answer = (await server.post(CHAT, **body)).json()["choices"][0]
    assert set(answer["message"]["content"]) == {"<"}, "text is free"


@pytest.mark.parametrize("name", CONSTRAINED)
async def test_with_a_response_format_the_answer_is_in_it_or_calls(servers: Any, name: str):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    fields = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}, "n": 6, "seed": 1}
    answer = (await servers[name].post(CHAT, messages=MESSAGES, tools=TOOLS, max_tokens=1200, **fields)).json()
    kinds = set()
    for choice in answer["choices"]:
        kinds.add(choice["finish_reason"])
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
        for call in choice["message"].get("tool_calls", ()):
            jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])
    assert kinds & {"stop", "tool_calls"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("weather", strict="yes")]}, "tools[0].function.strict"),
        (
            {"tools": [tool("now"), tool("weather", strict=True, parameters={"type": "object", "not": {}})]},
            "tools[1].function.parameters",
        ),
        ({"tools": TOOLS, "response_format": {"type": "structural_tag", "format": {"type": "any_text"}}}, "tools"),
    ],
)
async def test_what_cannot_be_forced_gets_400_with_its_field(servers: Any, fields: dict[str, Any], param: str):
    answer = await servers["hermes"].post(CHAT, messages=MESSAGES, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


async def test_calls_in_pythons_form_cannot_be_forced(servers: Any):
    answer = await servers["llama3-pythonic"].post(CHAT, messages=MESSAGES, tools=TOOLS, tool_choice="required")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tool_choice"
