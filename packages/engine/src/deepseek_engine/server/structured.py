"""Structured output on the wire: which fields ask for it, and what they mean."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from deepseek_client.types import SamplingFields
from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.describe import JSON_OBJECT, choice_source, ebnf_source, json_schema_source, regex_source
from deepseek_engine.grammar.source import GrammarSource
from deepseek_engine.grammar.structural_tag import structural_tag_source
from deepseek_engine.grammar.tool_calls import ToolSchemaError
from deepseek_engine.grammar.trials import GrammarTrials
from deepseek_engine.server.call_grammar import call_grammar, needs_call_grammar, request_tools
from deepseek_engine.server.errors import ApiError
from deepseek_engine.server.job import Job

Reader = Callable[[Any, str], GrammarSource]


async def requested_grammar(request: SamplingFields, job: Job, trials: GrammarTrials) -> GrammarSource | None:
    """The grammar that the request's answers have to follow, tried out; None if there is none.

    Args:
        request: any that generates.
        job: what became of it, with its tools and its model's format.
        trials: where it is tried.

    Raises:
        ApiError: 400, `param` is the field at fault.
        QueueFullError, EngineError: it cannot be tried now.
    """
    asked = _asking_field(request)
    answer = None
    if asked is not None:
        name, value = asked
        try:
            # In a thread, however small it is: a few hundred bytes of schema can ask for a second of work.
            answer = await asyncio.to_thread(_FIELDS[name], value, name)
            await trials.check(answer)
        except GrammarError as error:
            raise ApiError(400, f"{name}: {error}", param=name) from error
    if not needs_call_grammar(job, answer):
        return answer
    try:
        source = await asyncio.to_thread(call_grammar, job, answer)
        await trials.check(source)
    except ToolSchemaError as error:
        names = [tool["function"]["name"] for tool in request_tools(request)]
        param = f"tools[{names.index(error.name)}].function.parameters"
        raise ApiError(400, f"{param}: {error}", param=param) from error
    except GrammarError as error:
        raise ApiError(400, f"tools: {error}", param="tools") from error
    return source


def _asking_field(request: SamplingFields) -> tuple[str, Any] | None:
    asked = [(name, value) for name in _FIELDS if (value := getattr(request, name, None)) is not None]
    asked = [(name, value) for name, value in asked if name != "response_format" or not _is_text_format(value)]
    if not asked:
        return None
    first, *others = asked
    if others:
        other = others[0][0]
        raise ApiError(400, f"{first[0]} and {other} both describe the answer: give one of them", param=other)
    return first


def _is_text_format(value: Any) -> bool:
    return isinstance(value, dict) and cast("dict[str, Any]", value).get("type") == "text"


def _response_format(value: Any, name: str) -> GrammarSource:
    fields = _object(value, name)
    match fields.get("type"):
        case "json_object":
            return JSON_OBJECT
        case "json_schema":
            described = _object(fields.get("json_schema"), f"{name}.json_schema")
            if described.get("schema") is None:
                raise GrammarError("json_schema.schema is missing: it holds the schema")
            return json_schema_source(_object(described["schema"], f"{name}.json_schema.schema"))
        case "structural_tag":
            return structural_tag_source(fields)
        case other:
            raise GrammarError(f"type={other!r}: use text, json_object, json_schema or structural_tag")


def _structured_outputs(value: Any, name: str) -> GrammarSource:
    """The field of vLLM: one of `_KINDS`; its other options are left alone."""
    fields = {key: each for key, each in _object(value, name).items() if each is not None and each is not False}
    kinds = [key for key in _KINDS if key in fields]
    if len(kinds) != 1:
        found = ", ".join(kinds) or "none of them"
        raise GrammarError(f"give exactly one of {', '.join(_KINDS)}; there is {found}")
    return _KINDS[kinds[0]](fields[kinds[0]], f"{name}.{kinds[0]}")


def _json(value: Any, name: str) -> GrammarSource:
    if not isinstance(value, dict | str):
        raise GrammarError(f"{name} must be a JSON schema: an object, or its text")
    return json_schema_source(value)


def _json_object(value: Any, name: str) -> GrammarSource:
    if value is not True:
        raise GrammarError(f"{name} must be true or false")
    return JSON_OBJECT


def _regex(value: Any, name: str) -> GrammarSource:
    return regex_source(_text(value, name))


def _grammar(value: Any, name: str) -> GrammarSource:
    return ebnf_source(_text(value, name))


def _choice(value: Any, name: str) -> GrammarSource:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in cast("list[Any]", value)):
        raise GrammarError(f"{name} must be a list of strings")
    return choice_source(cast("list[str]", value))


def _structural_tag(value: Any, name: str) -> GrammarSource:
    if not isinstance(value, dict | str):
        raise GrammarError(f"{name} must be a structural tag: an object, or its text")
    return structural_tag_source(value)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GrammarError(f"{name} must be a JSON object")
    return cast("dict[str, Any]", value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise GrammarError(f"{name} must be a string that is not empty")
    return value


_KINDS: Final[dict[str, Reader]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _json_object,
    "structural_tag": _structural_tag,
}
_FIELDS: Final[dict[str, Reader]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
}
