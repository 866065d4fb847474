"""Tool calls that the request forces, over HTTP with the openai package: the model has random weights, so that only the
grammar can make them right."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import jsonschema
import openai
import pytest
import pytest_asyncio

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
    plain = load_tokenizer(folder)
    engine = await AsyncEngine.start(EngineConfig(model=folder, dtype="float32", num_threads=1))
    async with AsyncExitStack() as stack:
        found: dict[str, Any] = {}
        for name in [*CONSTRAINED, "llama3-pythonic"]:
            encoder = TemplateEncoder(ChatTemplate(TEMPLATE), FORMATS[name])
            tokenizer = Tokenizer(plain._backend, eos_token_ids=plain.eos_token_ids, chat_encoder=encoder)
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
async def test_a_required_call_begins_behind_the_reasoning(servers: Any, name: str):
    thinking = {"type": "enabled"}
    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 1500, "tool_choice": NAMED, "seed": 5}
    begun = {"role": "assistant", "content": "", "reasoning_content": "hm", "prefix": True}
    closed = (await servers[name].post(CHAT, **body, thinking={"type": "disabled"})).json()["choices"][0]
    assert closed["finish_reason"] == "tool_calls"
    body = {**body, "messages": [*MESSAGES, begun], "thinking": thinking, "max_tokens": 30}
    opened = (await servers[name].post(CHAT, **body)).json()["choices"][0]
    assert opened["finish_reason"] == "length"
    assert opened["message"]["reasoning_content"]


async def test_a_strict_tool_is_followed_once_its_call_has_begun(servers: Any):
    server = servers["hermes"]
    (less,) = server.state.tokenizer.encode("<")
    # A model that wants nothing but `<` cannot help but begin a call, when what it may write is `<tool_call>`.
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
