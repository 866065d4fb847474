"""An answer as a value of a type, on servers with and without `json_schema`. A flow: no I/O, one text for both clients.

A server is first asked to hold the model to the type's JSON schema. One that refuses that (DeepSeek's chat knows
`json_object` only) is told the schema in the prompt instead; the client remembers which.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from deepseek_client.core import Core
from deepseek_client.effects import Flow
from deepseek_client.errors import (
    APIStatusError,
    BlankJSONError,
    ConfigurationError,
    ContentFilterFinishReasonError,
    FinishReasonError,
    LengthFinishReasonError,
    ResponseValidationError,
    ServerResourceError,
)
from deepseek_client.exchange import describe
from deepseek_client.tools.loop import as_param
from deepseek_client.tools.tool import Schema, StrictSchema, strict_schema
from deepseek_client.types.base import Usage
from deepseek_client.types.chat import ChatCompletion, ChatMessage

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
        text = _text(completion)
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


def _text(completion: ChatCompletion) -> str:
    content = completion.choices[0].message.content if completion.choices else None
    if isinstance(content, str):
        return content
    return "".join(part.text or "" for part in content or ())


def _faults(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    faults = error.errors(include_url=False, include_input=False, include_context=False)[:10]
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in faults)
