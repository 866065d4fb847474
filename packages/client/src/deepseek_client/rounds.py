"""Calls that may take several requests: `parse` asks until the answer has its type, `run_tools` until it is one.

A server is first asked to hold the model to a type's JSON schema. One that refuses that (DeepSeek's chat knows
`json_object` only) is told the schema in the prompt instead; the client remembers which.
Flows: no I/O, one text for both clients.
"""

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from deepseek_client.core import Core
from deepseek_client.effects import CallTools, Flow, ToolRequest
from deepseek_client.errors import (
    APIStatusError,
    BlankJSONError,
    ConfigurationError,
    ContentFilterFinishReasonError,
    FinishReasonError,
    LengthFinishReasonError,
    ResponseValidationError,
    ServerResourceError,
    ToolRoundsError,
)
from deepseek_client.exchange import describe
from deepseek_client.streaming import text_of
from deepseek_client.tools import Schema, StrictSchema, Tool, strict_schema, tool
from deepseek_client.types.base import Usage
from deepseek_client.types.chat import ChatCompletion, ChatMessage, ToolCall

T = TypeVar("T")

BLANK_RETRIES = 2
"""How often a blank answer is asked for again; DeepSeek's guide says that its JSON mode gives some."""

_WRAPPER = "value"
"""The key of a value that is no object itself: servers want an object at the top."""

_FENCE = re.compile(r"^```[a-z]*\s*\n(.*?)\n?```$", re.DOTALL)
_ENDINGS: dict[str, type[FinishReasonError]] = {
    "length": LengthFinishReasonError,
    "content_filter": ContentFilterFinishReasonError,
    "insufficient_system_resource": ServerResourceError,
    "aborted": ServerResourceError,
    "abort": ServerResourceError,
}


@dataclass(frozen=True, slots=True)
class ParsedCompletion(Generic[T]):
    """A chat completion, and the value that it says.

    Attributes:
        parsed: the value.
        completion: the answer that it was read from.
        rounds: how many answers it took.
    """

    parsed: T
    completion: ChatCompletion
    rounds: int

    @property
    def usage(self) -> Usage | None:
        """Of the last answer."""
        return self.completion.usage


@dataclass(frozen=True, slots=True)
class _Target(Generic[T]):
    """A type, and how a server is asked for it."""

    adapter: TypeAdapter[T]
    name: str
    strict: StrictSchema
    is_wrapped: bool

    def response_format(self) -> dict[str, Any]:
        schema = {"name": self.name, "schema": self.strict.schema, "strict": self.strict.is_strict}
        return {"type": "json_schema", "json_schema": schema}

    def instruction(self) -> dict[str, Any]:
        schema = json.dumps(self.strict.schema, ensure_ascii=False, separators=(",", ":"))
        text = f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
        return {"role": "system", "content": text}

    def read(self, text: str) -> T:
        fenced = _FENCE.match(text)
        data = fenced[1] if fenced is not None else text
        if not self.is_wrapped:
            return self.adapter.validate_json(data)
        value: Any = from_json(data)
        if not isinstance(value, dict) or _WRAPPER not in value:
            raise ValueError(f"it is no object with the key {_WRAPPER!r}")
        return self.adapter.validate_python(cast("dict[str, Any]", value)[_WRAPPER])


def parse(
    core: Core,
    messages: Iterable[ChatMessage | Mapping[str, Any]],
    response_model: type[T],
    repairs: int,
    params: Mapping[str, Any],
) -> Flow[ParsedCompletion[T]]:
    """An answer as a value of a type.

    Args:
        core: the client's.
        messages: the conversation.
        response_model: any type that pydantic can read: a model, a dataclass, `list[int]`, a Literal.
        repairs: how often a wrong answer is shown to the model again, with what is wrong with it.
        params: of the chat.

    Raises:
        FinishReasonError: the answer ended early; BlankJSONError, ResponseValidationError: it says something else.
    """
    if repairs < 0:
        raise ConfigurationError(f"repairs={repairs} must be 0 or more")
    if params.get("response_format") is not None:
        raise ConfigurationError("response_format is what parse sets: leave it out, or use create")
    target = _target(response_model)
    history = [as_param(message) for message in messages]
    blanks = wrong = 0
    while True:
        completion = yield from _ask(core, history, target, params)
        text = text_of(completion)
        rounds = blanks + wrong + 1
        if not text.strip():
            blanks += 1
            if blanks > BLANK_RETRIES:
                raise _about(completion, BlankJSONError(f"asked for JSON, and got blanks {rounds} times"))
            continue
        try:
            return ParsedCompletion(target.read(text.strip()), completion, rounds)
        except ValueError as error:  # pydantic's and json's too
            wrong += 1
            if wrong > repairs:
                message = f"the answer is not {target.name}: {describe(error)}; it begins: {text.strip()[:200]!r}"
                raise _about(completion, ResponseValidationError(message)) from error
            history.append(as_param(completion.choices[0].message))
            complaint = f"That is not what was asked for: {_faults(error)}. Answer again, with the whole JSON object."
            history.append({"role": "user", "content": complaint})


def _ask(
    core: Core, history: list[dict[str, Any]], target: _Target[Any], params: Mapping[str, Any]
) -> Flow[ChatCompletion]:
    """One answer, in the way that the server knows."""
    if core.knowledge.structured != "json_object":
        try:
            completion = yield from core.chat(history, {**params, "response_format": target.response_format()})
        except APIStatusError as error:
            if not _refuses_schemas(error):
                raise
            core.knowledge.structured = "json_object"
        else:
            core.knowledge.structured = "json_schema"
            return _whole(completion)
    asked = [target.instruction(), *history]
    completion = yield from core.chat(asked, {**params, "response_format": {"type": "json_object"}})
    return _whole(completion)


def _refuses_schemas(error: APIStatusError) -> bool:
    """Whether a server says that it does not know `json_schema`, not that this schema is wrong."""
    if error.status_code not in (400, 404, 422, 501):
        return False
    said = error.message.lower()
    if "#/" in said:  # a place inside the schema, which our engine names: the rest of it is understood
        return False
    about = "response_format" in (error.param or "") or "response_format" in said or "json_schema" in said
    return about and any(word in said for word in _UNKNOWN)


_UNKNOWN = ("unavailable", "unsupported", "not support", "unknown", "must be one of", "invalid", "expected", "no such")


def _whole(completion: ChatCompletion) -> ChatCompletion:
    reason = completion.choices[0].finish_reason if completion.choices else None
    kind = _ENDINGS.get(reason or "")
    if kind is not None:
        assert reason is not None
        raise _about(completion, kind(f"the answer ended with {reason!r} before it was whole", finish_reason=reason))
    return completion


ErrorT = TypeVar("ErrorT", BlankJSONError, ResponseValidationError, FinishReasonError)


def _about(completion: ChatCompletion, error: ErrorT) -> ErrorT:
    error.request_id = completion.request_id
    error.snapshot = completion
    return error


@lru_cache(maxsize=256)
def _target(response_model: type[T]) -> _Target[T]:
    adapter = TypeAdapter(response_model)
    schema: Schema = adapter.json_schema()
    strict = strict_schema(schema, keeps_limits=True)
    is_object = strict.schema.get("type") == "object"
    if not is_object:
        definitions = schema.pop("$defs", None)
        wrapped: Schema = {"type": "object", "properties": {_WRAPPER: schema}, "required": [_WRAPPER]}
        strict = strict_schema({**wrapped, "$defs": definitions} if definitions else wrapped, keeps_limits=True)
    name = re.sub(r"[^A-Za-z0-9_-]", "_", getattr(response_model, "__name__", "answer"))[:64] or "answer"
    return _Target(adapter, name, strict, not is_object)


def _faults(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    faults = error.errors(include_url=False, include_input=False, include_context=False)[:10]
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in faults)


@dataclass(frozen=True, slots=True)
class ToolRun:
    """What a model with tools came to.

    Attributes:
        completion: the last answer, which calls no tool.
        messages: the whole conversation, the answer included: what a next turn is appended to.
        rounds: how many answers it took.
    """

    completion: ChatCompletion
    messages: list[dict[str, Any]]
    rounds: int

    @property
    def text(self) -> str:
        """The text of the last answer."""
        return text_of(self.completion)


def run_tools(
    core: Core,
    messages: Iterable[ChatMessage | Mapping[str, Any]],
    tools: Iterable[Tool | Any],
    max_rounds: int,
    params: Mapping[str, Any],
    *,
    is_async: bool,
) -> Flow[ToolRun]:
    """Ask, call what the model asks for, tell it the results, and so on until it answers.

    The conversation keeps the model's reasoning, which DeepSeek wants back after a turn that called tools, and writes
    "" where a turn has no text, since servers refuse null there.

    Raises:
        DeepSeekError: a request failed; ToolRoundsError: there was no answer after `max_rounds`.
    """
    if max_rounds < 1:
        raise ConfigurationError(f"max_rounds={max_rounds} must be 1 or more")
    offered = _by_name(tools, is_async=is_async)
    history = [as_param(message) for message in messages]
    given = {**params, "tools": [each.to_param() for each in offered.values()]}
    if _insists(given.get("tool_choice")) and _thinks(given):
        warnings.warn("tool_choice is sent as auto: a thinking model is not made to call a tool", stacklevel=4)
        given["tool_choice"] = "auto"
    for rounds in range(1, max_rounds + 1):
        completion = yield from core.chat(history, given)
        message = completion.choices[0].message
        history.append(as_param(message))
        if not message.tool_calls:
            return ToolRun(completion, history, rounds)
        results: list[object] = yield CallTools([_request(offered, call) for call in message.tool_calls])
        for call, result in zip(message.tool_calls, results, strict=True):
            history.append({"role": "tool", "tool_call_id": call.id or "", "content": _as_text(result)})
        if _insists(given.get("tool_choice")):
            given["tool_choice"] = "auto"  # it has called one: the next answer may be the last
    error = ToolRoundsError(f"the model still calls tools after max_rounds={max_rounds} answers", messages=history)
    error.snapshot = completion  # pyright: ignore[reportPossiblyUnboundVariable]  max_rounds is at least 1
    raise error


def as_param(message: ChatMessage | Mapping[str, Any]) -> dict[str, Any]:
    """A message as a request takes it back, nothing lost: reasoning and tool calls too."""
    if not isinstance(message, ChatMessage):
        return dict(message)
    param = message.to_wire()
    for name in ("content", "reasoning_content", "tool_calls"):
        if param.get(name, ...) is None:
            del param[name]
    param.setdefault("content", "")
    for call in cast("list[dict[str, Any]]", param.get("tool_calls") or []):
        call.pop("index", None)
    return param


def _by_name(tools: Iterable[Tool | Any], *, is_async: bool) -> dict[str, Tool]:
    offered: dict[str, Tool] = {}
    for given in tools:
        each = given if isinstance(given, Tool) else tool(given)
        if each.name in offered:
            raise ConfigurationError(f"two tools have the name {each.name!r}")
        if each.is_async and not is_async:
            raise ConfigurationError(f"the tool {each.name} is a coroutine function: use AsyncDeepSeek")
        offered[each.name] = each
    if not offered:
        raise ConfigurationError("tools is empty: name at least one, or use create")
    return offered


def _request(offered: Mapping[str, Tool], call: ToolCall) -> ToolRequest:
    name = call.function.name or ""
    return ToolRequest(offered.get(name), name, call.function.arguments or "", tuple(offered))


def _insists(choice: object) -> bool:
    return choice is not None and choice not in ("auto", "none")


def _thinks(params: Mapping[str, Any]) -> bool:
    thinking = params.get("thinking")
    kind: object = cast("Mapping[str, Any]", thinking).get("type") if isinstance(thinking, Mapping) else None
    effort = params.get("reasoning_effort")
    return kind == "enabled" or (effort is not None and effort != "none")


def _as_text(result: object) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, BaseModel):
        return result.model_dump_json()
    return json.dumps(result, ensure_ascii=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset | tuple):
        return list(cast("Sequence[object]", value))
    return str(value)
