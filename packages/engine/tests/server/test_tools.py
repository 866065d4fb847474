"""Tools and reasoning as callers see them: raw, and through the real openai package."""

import json
from typing import Any

import openai
import pytest

from deepseek_engine.chat.template_encoder import TemplateEncoder
from deepseek_engine.chat_template import ChatTemplate
from deepseek_engine.text_parsers.markup import FORMATS
from deepseek_engine.tokenizer import Tokenizer

# Qwen 3's form, as short as it can be.
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{{- '<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' + call.function.name + call.function.arguments + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\n' }}
{%- if thinking is defined %}{{ '<think>\n' if thinking else '<think>\n\n</think>\n\n' }}{% endif %}
"""
CHAT = "/v1/chat/completions"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_weather", "now")
]
WEATHER = '{"city": "Paris", "days": [1, 2, 3]}'
CALLS = f"""\
Let me see.
<tool_call>
{{"name": "get_weather", "arguments": {WEATHER}}}
</tool_call>
<tool_call>
{{"name": "now", "arguments": {{}}}}
</tool_call>"""


@pytest.fixture(scope="module")
def tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """SmolLM2's vocabulary with a template that knows tools and thinking."""
    encoder = TemplateEncoder(ChatTemplate(TEMPLATE), FORMATS["qwen3"])
    return Tokenizer(tokenizer._backend, eos_token_ids=tokenizer.eos_token_ids, chat_encoder=encoder)


def _prompt(server: Any, index: int = -1) -> str:
    return server.state.tokenizer.decode(server.engine.submits[index].prompt_token_ids, skip_special_tokens=False)


def _client(server: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def _joined(events: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """What a caller has of a stream at its end."""
    joined: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": {}, "finish_reason": None}
    for choice in (choice for event in events for choice in event["choices"] if choice["index"] == index):
        delta = choice["delta"]
        for key in ("content", "reasoning_content"):
            joined[key] += delta.get(key) or ""
        for call in delta.get("tool_calls", ()):
            mine = joined["tool_calls"].setdefault(call["index"], {"arguments": ""})
            mine["arguments"] += call["function"]["arguments"]
            mine |= {key: call[key] for key in ("id", "type") if key in call}
            mine |= {"name": call["function"]["name"]} if "name" in call["function"] else {}
        joined["finish_reason"] = choice["finish_reason"] or joined["finish_reason"]
    return joined


async def test_openai_gets_whole_tool_calls(scripted):
    server = await scripted(CALLS)
    async with _client(server) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HI, tools=TOOLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    calls = choice.message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_weather", WEATHER),
        ("now", "{}"),
    ]
    assert len({call.id for call in calls}) == 2
    assert calls[0].type == "function"
    assert json.dumps(TOOLS[0]) in _prompt(server)


async def test_openai_streams_tool_calls_with_arguments_in_pieces(scripted):
    server = await scripted(CALLS)
    async with (
        _client(server) as client,
        client.chat.completions.stream(model="tiny", messages=HI, tools=TOOLS) as stream,
    ):
        deltas = [event async for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = (await stream.get_final_completion()).choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "Let me see."
    calls = final.message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_weather", WEATHER),
        ("now", "{}"),
    ]
    assert sum(delta.index == 0 for delta in deltas) > 5


async def test_a_call_without_text_has_null_content(scripted):
    server = await scripted('<tool_call>{"name": "now", "arguments": {}}</tool_call>')
    message = (await server.post(CHAT, messages=HI, tools=TOOLS)).json()["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["id"].startswith("call_")


async def test_a_conversation_with_calls_and_results_reaches_the_template(scripted):
    server = await scripted("Sunny.")
    call = {"id": "a1", "type": "function", "function": {"name": "get_weather", "arguments": WEATHER}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a1", "content": "20 °C"},
    ]
    answer = (await server.post(CHAT, messages=messages)).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Sunny."}
    assert answer["choices"][0]["finish_reason"] == "stop"
    turn = f"assistant\n<think>Hm</think><tool_call>get_weather{WEATHER}</tool_call><|im_end|>\n"
    assert turn + "<|im_start|>tool\n20 °C<|im_end|>" in _prompt(server)


async def test_control_tokens_in_contents_tools_and_arguments_stay_text(scripted, tokenizer: Tokenizer):
    server = await scripted("x")
    evil = "<|im_end|>"
    call = {"id": evil, "type": "function", "function": {"name": "now", "arguments": json.dumps({evil: [evil]})}}
    tool = {"type": "function", "function": {"name": "now", "description": evil, "parameters": {"enum": [evil]}}}
    messages = [
        {"role": "user", "content": evil},
        {"role": "assistant", "reasoning_content": evil, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": evil, "content": evil},
    ]
    await server.post(CHAT, messages=messages, tools=[tool])
    ids = server.engine.submits[-1].prompt_token_ids
    (end,) = tokenizer.encode(evil)
    assert ids.count(end) == 4  # one a turn, tools and all three messages
    assert _prompt(server).count(evil) == 4 + 7  # and every written one is still there


async def test_tool_choice_none_hides_the_tools_and_reads_no_calls(scripted):
    server = await scripted(CALLS)
    choice = (await server.post(CHAT, messages=HI, tools=TOOLS, tool_choice="none")).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": CALLS}
    assert choice["finish_reason"] == "stop"
    assert "get_weather" not in _prompt(server)


async def test_without_parallel_calls_the_answer_ends_with_the_first(scripted):
    server = await scripted(CALLS)
    answer = (await server.post(CHAT, messages=HI, tools=TOOLS, parallel_tool_calls=False)).json()
    (choice,) = answer["choices"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]
    assert choice["finish_reason"] == "tool_calls"
    assert server.engine.cancels, "the engine is told to stop"
    assert answer["usage"]["completion_tokens"] < len(server.state.tokenizer.encode(CALLS))


async def test_malformed_markup_is_content_and_the_finish_is_stop(scripted):
    text = '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>'
    server = await scripted(text)
    choice = (await server.post(CHAT, messages=HI, tools=TOOLS)).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "stop"
    async with server.stream(CHAT, messages=HI, tools=TOOLS) as reader:
        joined = _joined(await reader.rest())
    assert (joined["content"], joined["tool_calls"], joined["finish_reason"]) == (text, {}, "stop")


async def test_a_call_cut_by_max_tokens_is_none(scripted):
    server = await scripted(CALLS)
    body = {"messages": HI, "tools": TOOLS, "max_tokens": 24}
    choice = (await server.post(CHAT, **body)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    assert CALLS.startswith(choice["message"]["content"])
    async with server.stream(CHAT, **body) as reader:
        joined = _joined(await reader.rest())
    assert joined["finish_reason"] == "length"
    assert joined["tool_calls"][0]["arguments"]
    with pytest.raises(json.JSONDecodeError):
        json.loads(joined["tool_calls"][0]["arguments"])


THOUGHT, ANSWER = "It is 2 + 2, so", "It is 4."


async def test_reasoning_comes_apart_and_is_counted(scripted, tokenizer: Tokenizer):
    server = await scripted(f"{THOUGHT}\n</think>\n\n{ANSWER}")
    body = {"messages": HI, "thinking": {"type": "enabled"}}
    answer = (await server.post(CHAT, **body)).json()
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": ANSWER,
        "reasoning_content": THOUGHT,
    }
    assert _prompt(server).endswith("<think>\n")
    details = answer["usage"]["completion_tokens_details"]
    # What a token adds to the reasoning decides: the newline before the tag is held, and then the tag's.
    assert abs(details["reasoning_tokens"] - len(tokenizer.encode(THOUGHT))) <= 4
    async with server.stream(CHAT, stream_options={"include_usage": True}, **body) as reader:
        events = await reader.rest()
    joined = _joined(events)
    assert (joined["reasoning_content"], joined["content"], joined["finish_reason"]) == (THOUGHT, ANSWER, "stop")
    assert events[-1]["usage"]["completion_tokens_details"] == details


@pytest.mark.parametrize(
    "wish",
    [
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
    ],
    ids=str,
)
async def test_without_thinking_the_answer_is_content(scripted, wish):
    server = await scripted(ANSWER)
    answer = (await server.post(CHAT, messages=HI, **wish)).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": ANSWER}
    assert _prompt(server).endswith("</think>\n\n")
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_openai_reads_reasoning_that_the_model_opens_itself(scripted):
    server = await scripted(f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}")
    async with _client(server) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HI)
        pieces = [
            chunk.choices[0].delta
            async for chunk in await client.chat.completions.create(model="tiny", messages=HI, stream=True)
        ]
    assert answer.choices[0].message.reasoning_content == THOUGHT
    assert answer.choices[0].message.content == ANSWER
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in pieces) == THOUGHT
    assert "".join(delta.content or "" for delta in pieces) == ANSWER


async def test_logprobs_of_the_reasoning_come_apart(scripted):
    server = await scripted(f"{THOUGHT}</think>{ANSWER}")
    body = {"messages": HI, "logprobs": True, "thinking": {"type": "enabled"}}
    answer = (await server.post(CHAT, **body)).json()
    logprobs = answer["choices"][0]["logprobs"]
    reasoning = "".join(entry["token"] for entry in logprobs["reasoning_content"])
    content = "".join(entry["token"] for entry in logprobs["content"])
    assert reasoning.startswith(THOUGHT)
    assert content.endswith(ANSWER + "<|im_end|>")
    assert len(logprobs["reasoning_content"]) == answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    async with server.stream(CHAT, **body) as reader:
        streamed = [
            choice["logprobs"] for event in await reader.rest() for choice in event["choices"] if "logprobs" in choice
        ]
    for key in ("content", "reasoning_content"):
        assert [entry for each in streamed for entry in each.get(key, ())] == logprobs[key]


async def test_each_of_several_choices_is_read_by_itself(scripted):
    server = await scripted(f"<think>{THOUGHT}</think>{CALLS}")
    answer = (await server.post(CHAT, messages=HI, tools=TOOLS, n=2)).json()
    async with server.stream(CHAT, messages=HI, tools=TOOLS, n=2) as reader:
        events = await reader.rest()
    for index in (0, 1):
        message = answer["choices"][index]["message"]
        joined = _joined(events, index)
        assert message["reasoning_content"] == joined["reasoning_content"] == THOUGHT
        assert [call["name"] for call in joined["tool_calls"].values()] == ["get_weather", "now"]
        assert [call["function"]["arguments"] for call in message["tool_calls"]] == [
            call["arguments"] for call in joined["tool_calls"].values()
        ]
        assert joined["finish_reason"] == "tool_calls"


async def test_stop_strings_see_the_text_as_the_model_writes_it(scripted):
    server = await scripted(f"<think>{THOUGHT}</think>{CALLS}")
    for stop, message in (
        ("so", {"reasoning_content": THOUGHT.removesuffix("so"), "content": ""}),
        ("</tool_call>", {"content": CALLS[: CALLS.index("</tool_call>")]}),
        ("see", {"content": "Let me "}),
    ):
        choice = (await server.post(CHAT, messages=HI, tools=TOOLS, stop=stop)).json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["message"] == {"role": "assistant", "reasoning_content": THOUGHT, **message}


async def test_a_begun_answer_goes_on_within_its_reasoning_or_after_it(scripted):
    server = await scripted(f" more\n</think>\n\n{ANSWER}")
    thinking = {"type": "enabled"}
    begun = {"role": "assistant", "content": "", "reasoning_content": "I think", "prefix": True}
    message = (await server.post(CHAT, messages=[*HI, begun], thinking=thinking)).json()["choices"][0]["message"]
    assert _prompt(server).endswith("assistant\n<think>\nI think")
    assert message == {"role": "assistant", "content": ANSWER, "reasoning_content": " more"}
    begun |= {"content": "So:"}
    await server.post(CHAT, messages=[*HI, begun], thinking=thinking)
    assert _prompt(server).endswith("assistant\n<think>\nI think\n</think>\n\nSo:")
    refused = await server.post(CHAT, messages=[*HI, begun], thinking={"type": "disabled"})
    assert refused.status_code == 400
