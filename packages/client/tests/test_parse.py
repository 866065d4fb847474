"""Answers as values of a type, on servers with and without json_schema."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

import deepseek_client as ds


class Step(BaseModel):
    number: int
    text: str


class Report(BaseModel):
    steps: list[Step] = Field(max_length=5)
    verdict: Literal["buy", "hold", "sell"]
    share: float = Field(ge=0, le=1)


REPORT = {"steps": [{"number": 1, "text": "a"}], "verdict": "hold", "share": 0.5}


def says(kit, content: object, finish_reason: str = "stop") -> Any:
    text = content if isinstance(content, str) else json.dumps(content)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return kit.reply(kit.CHAT | {"choices": [choice]}, x_request_id="req-1")


def refusal(kit, message: str = "This response_format type is unavailable now", status: int = 400) -> Any:
    return kit.reply({"error": {"message": message, "type": "invalid_request_error"}}, status)


async def test_the_server_is_asked_for_the_types_schema(server, connect, kit):
    server.script(says(kit, REPORT))
    answer = await kit.settle(
        connect().chat.completions.parse(messages=kit.MESSAGES, response_model=Report, temperature=0.0)
    )
    assert answer.parsed == Report(**REPORT)
    assert (answer.rounds, answer.usage.total_tokens, answer.completion.request_id) == (1, 5, "req-1")
    (request,) = server.requests
    asked = request.json["response_format"]
    assert (asked["type"], asked["json_schema"]["name"], asked["json_schema"]["strict"]) == (
        "json_schema",
        "Report",
        True,
    )
    assert asked["json_schema"]["schema"]["properties"]["steps"]["items"]["required"] == ["number", "text"]
    assert asked["json_schema"]["schema"]["properties"]["steps"]["maxItems"] == 5
    assert request.json["messages"] == kit.MESSAGES
    assert request.json["temperature"] == 0.0


async def test_a_server_without_json_schema_is_told_it_in_the_prompt_and_remembered(server, connect, kit):
    server.script(refusal(kit), says(kit, "```json\n" + json.dumps(REPORT) + "\n```"), says(kit, REPORT))
    chat = connect().chat.completions
    for _ in range(2):
        answer = await kit.settle(chat.parse(messages=kit.MESSAGES, response_model=Report))
        assert answer.parsed.verdict == "hold"
    formats = [request.json["response_format"]["type"] for request in server.requests]
    assert formats == ["json_schema", "json_object", "json_object"]
    first, *rest = server.requests[1].json["messages"]
    assert first["role"] == "system"
    assert '"verdict"' in first["content"]
    assert "JSON" in first["content"]
    assert rest == kit.MESSAGES


@pytest.mark.parametrize(
    "said",
    [
        "the prompt has too many tokens for json_schema",
        "response_format: #/steps/0: enum beside not is not supported: write one of them",
    ],
)
async def test_another_refusal_is_the_callers(server, connect, kit, said):
    server.script(refusal(kit, said))
    with pytest.raises(ds.BadRequestError, match=r"too many tokens|write one of them"):
        await kit.settle(connect().chat.completions.parse(messages=kit.MESSAGES, response_model=Report))
    assert len(server.requests) == 1


@dataclass
class Point:
    x: int
    y: int


@pytest.mark.parametrize(
    ("kind", "answer", "value"),
    [
        (list[int], {"value": [1, 2]}, [1, 2]),
        (Literal["a", "b"], {"value": "b"}, "b"),
        (Point, {"x": 1, "y": 2}, Point(1, 2)),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (list[Point], {"value": [{"x": 1, "y": 2}]}, [Point(1, 2)]),
        (Step | None, {"value": None}, None),
    ],
)
async def test_any_type_that_pydantic_reads_can_be_asked_for(server, connect, kit, kind, answer, value):
    server.script(says(kit, answer))
    parsed = (await kit.settle(connect().chat.completions.parse(messages=kit.MESSAGES, response_model=kind))).parsed
    assert parsed == value
    assert server.requests[0].json["response_format"]["json_schema"]["schema"]["type"] == "object"


async def test_blank_answers_are_asked_for_again(server, connect, kit):
    server.script(says(kit, "  \n"), says(kit, ""), says(kit, REPORT))
    answer = await kit.settle(connect().chat.completions.parse(messages=kit.MESSAGES, response_model=Report))
    assert answer.rounds == 3
    server.requests.clear()
    server.script(says(kit, "   "))
    with pytest.raises(ds.BlankJSONError, match="3 times") as caught:
        await kit.settle(connect().chat.completions.parse(messages=kit.MESSAGES, response_model=Report))
    assert caught.value.request_id == "req-1"
    assert len(server.requests) == 3


async def test_wrong_answers_are_shown_to_the_model_as_often_as_asked(server, connect, kit):
    wrong = says(kit, REPORT | {"share": 7})
    server.script(wrong, says(kit, REPORT))
    chat = connect().chat.completions
    answer = await kit.settle(chat.parse(messages=kit.MESSAGES, response_model=Report, repairs=1))
    assert answer.rounds == 2
    asked, complaint = server.requests[1].json["messages"][-2:]
    assert json.loads(asked["content"])["share"] == 7
    assert "share: Input should be less than or equal to 1" in complaint["content"]
    server.requests.clear()
    server.script(wrong)
    with pytest.raises(
        ds.ResponseValidationError, match="the answer is not Report: share: Input should be less"
    ) as caught:
        await kit.settle(chat.parse(messages=kit.MESSAGES, response_model=Report))
    assert json.loads(caught.value.partial_text)["share"] == 7


@pytest.mark.parametrize("kind", [list[int], Report])
async def test_a_model_that_opens_brackets_for_ever_gives_a_wrong_answer(server, connect, kit, kind):
    server.script(says(kit, "[" * 50_000))
    with pytest.raises(ds.ResponseValidationError, match="begins: '\\[\\["):
        await kit.settle(connect().chat.completions.parse(messages=kit.MESSAGES, response_model=kind))


@pytest.mark.parametrize(
    ("reason", "cls"),
    [
        ("length", ds.LengthFinishReasonError),
        ("content_filter", ds.ContentFilterFinishReasonError),
        ("insufficient_system_resource", ds.ServerResourceError),
        ("abort", ds.ServerResourceError),
    ],
)
async def test_an_answer_that_ended_early_is_an_error_of_its_own(server, connect, kit, reason, cls):
    server.script(says(kit, '{"steps": [', reason))
    with pytest.raises(cls, match=reason) as caught:
        await kit.settle(connect().chat.completions.parse(messages=kit.MESSAGES, response_model=Report))
    assert (caught.value.finish_reason, caught.value.partial_text) == (reason, '{"steps": [')


async def test_wrong_uses_are_refused_before_anything_is_sent(server, connect, kit):
    chat = connect().chat.completions
    with pytest.raises(ds.ConfigurationError, match="repairs=-1"):
        await kit.settle(chat.parse(messages=kit.MESSAGES, response_model=Report, repairs=-1))
    with pytest.raises(ds.ConfigurationError, match="response_format is what parse sets"):
        await kit.settle(chat.parse(messages=kit.MESSAGES, response_model=Report, response_format={"type": "text"}))
    assert not server.requests
