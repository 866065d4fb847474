"""Every field of the wire contract that can hold text is known to the word filter, or known to be harmless."""

import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from deepseek_client import types as wire
from deepseek_gateway.guard.fields import SIDECARS, answer_texts, request_texts

REQUESTS: list[type[BaseModel]] = [
    *(wire.ChatCompletionRequest, wire.CompletionRequest, wire.GenerateRequest, wire.EmbeddingRequest),
]
ANSWERS: list[type[BaseModel]] = [
    *(wire.ChatCompletion, wire.ChatCompletionChunk, wire.Completion, wire.Generation, wire.GenerationChunk),
]

HARMLESS_IN_REQUESTS = {
    *("model", "user", "encoding_format", "reasoning_effort", "messages[].role", "messages[].tool_call_id"),
    *("messages[].content[].type", "messages[].tool_calls[].id", "messages[].tool_calls[].type"),
}
TEXT_IN_REQUESTS = {
    *("prompt", "prompt[]", "suffix", "input", "input[]", "stop", "stop[]", "messages[].content", "messages[].name"),
    *("messages[].content[].text", "messages[].reasoning_content", "messages[].tool_calls[].function.name"),
    *("messages[].tool_calls[].function.arguments", "tools[]", "tool_choice", "response_format", "structured_outputs"),
    *("chat_template_kwargs", "thinking", "pooling"),
}
HARMLESS_IN_ANSWERS = {
    *("id", "object", "model", "choices[].finish_reason", "finish_reason"),
    *("choices[].message.role", "choices[].message.tool_call_id", "choices[].message.content[].type"),
    *("choices[].message.tool_calls[].id", "choices[].message.tool_calls[].type"),
    *("choices[].delta.role", "choices[].delta.tool_calls[].id", "choices[].delta.tool_calls[].type"),
}
TEXT_IN_ANSWERS = {
    *("text", "choices[].text", "choices[].message.content", "choices[].message.content[].text"),
    *("choices[].message.reasoning_content", "choices[].message.name"),
    *("choices[].message.tool_calls[].function.name", "choices[].message.tool_calls[].function.arguments"),
    *("choices[].delta.content", "choices[].delta.reasoning_content"),
    *("choices[].delta.tool_calls[].function.name", "choices[].delta.tool_calls[].function.arguments"),
}


def paths_of(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Dotted paths of all fields below a model that can hold a string or anything at all."""
    for name, field in model.model_fields.items():
        yield from paths_below(field.annotation, f"{path}.{name}".strip("."))


def paths_below(annotation: Any, path: str) -> Iterator[str]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from paths_below(typing.get_args(annotation)[0], path)
    elif origin in {types.UnionType, typing.Union}:
        for part in typing.get_args(annotation):
            yield from paths_below(part, path)
    elif origin is list:
        yield from paths_below(typing.get_args(annotation)[0], f"{path}[]")
    elif origin is typing.Literal or annotation is str or annotation is Any:
        yield path
    elif origin is dict:
        if any(argument is not float for argument in typing.get_args(annotation)[1:]) or "logprobs" in path:
            yield path
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from paths_of(annotation, path)


def is_sidecar(path: str) -> bool:
    return any(part.removesuffix("[]") in SIDECARS for part in path.split("."))


def sample(path: str, text: str) -> Any:
    """JSON that has the text at a path."""
    if not path:
        return text
    head, _, rest = path.partition(".")
    value = sample(rest, text)
    for _ in range(head.count("[]")):
        value = [value]
    return {head.replace("[]", ""): value}


def test_every_text_of_the_contract_is_accounted_for() -> None:
    in_requests = {path for model in REQUESTS for path in paths_of(model)}
    assert in_requests == TEXT_IN_REQUESTS | HARMLESS_IN_REQUESTS
    in_answers = {path for model in ANSWERS for path in paths_of(model) if not is_sidecar(path)}
    assert in_answers == TEXT_IN_ANSWERS | HARMLESS_IN_ANSWERS


@pytest.mark.parametrize("path", sorted(TEXT_IN_REQUESTS))
def test_each_text_of_a_request_is_found(path: str) -> None:
    assert "words" in [place.text for place in request_texts(sample(path, "words"))]


@pytest.mark.parametrize("path", sorted(HARMLESS_IN_REQUESTS))
def test_harmless_fields_of_a_request_are_left_alone(path: str) -> None:
    assert [place.text for place in request_texts(sample(path, "words"))] == []


@pytest.mark.parametrize("path", sorted(TEXT_IN_ANSWERS))
def test_each_text_of_an_answer_is_found(path: str) -> None:
    assert [place.text for place in answer_texts(sample(path, "words"))] == ["words"]


@pytest.mark.parametrize("path", sorted(HARMLESS_IN_ANSWERS))
def test_harmless_fields_of_an_answer_are_left_alone(path: str) -> None:
    assert [place.text for place in answer_texts(sample(path, "words"))] == []


def test_fields_that_nobody_knows_are_texts_and_so_are_keys() -> None:
    fields = {"extra": {"words": [1, "deep"]}, "messages": [{"role": "user", "new": "text"}]}
    assert [place.text for place in request_texts(fields)] == ["words", "deep", "text"]
    event = {"choices": [{"index": 2, "delta": {"new": "text"}}]}
    assert [(place.choice, place.field) for place in answer_texts(event)] == [(2, "new")]


def test_names_of_places_never_hold_a_callers_words() -> None:
    fields = {"words": {"words": "words"}, "messages": [{"words": "words", "content": [{"words": "words"}]}]}
    assert not any("words" in place.field for place in request_texts(fields))
