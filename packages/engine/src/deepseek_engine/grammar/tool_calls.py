"""Grammars of answers that call tools: the markup of the model's format around arguments that fit their schemas."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.describe import check_grammar_size, json_schema_source
from deepseek_engine.grammar.dsml_arguments import as_object_schema, dsml_arguments
from deepseek_engine.grammar.source import GrammarSource
from deepseek_engine.text_parsers.tool_grammar import ToolGrammarSpec

_ANY_ARGUMENTS: Final[dict[str, Any]] = {"type": "object"}


class ToolSchemaError(GrammarError):
    """A strict tool's schema is none that a grammar can follow.

    Attributes:
        name: the tool.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def calls_source(
    spec: ToolGrammarSpec, strict: Sequence[bool], markup: tuple[str, ...], other: GrammarSource | None = None
) -> GrammarSource:
    """Answers that are calls and nothing else, or what another grammar says.

    Args:
        spec: the calls.
        strict: for each of its tags, whether a schema that cannot be followed is an error; else such a tool takes any
            object.
        markup: tags of the format that may be tokens of their own.
        other: what the answer may be instead, in GBNF.

    Raises:
        ToolSchemaError: a strict tool's schema cannot be followed.
        GrammarError: it is too large.
    """
    answer = _calls(spec, strict)
    if other is not None:
        answer = {"type": "or", "elements": [answer, {"type": "grammar", "grammar": other.text}]}
    return _source(answer, markup)


def text_or_calls_source(spec: ToolGrammarSpec, strict: Sequence[bool], markup: tuple[str, ...]) -> GrammarSource:
    """Answers of any text, in which calls fit their schemas once they have begun.

    Raises:
        As `calls_source`.
    """
    if not spec.trigger:
        # What begins as a call is one; elsewhere in a text nothing is.
        first = {"type": "grammar", "grammar": f"root ::= [^ \\t\\r\\n{spec.begin_of_calls[:1]}]"}
        text = {"type": "sequence", "elements": [first, {"type": "any_text", "excludes": list(spec.other_triggers)}]}
        return _source({"type": "or", "elements": [_calls(spec, strict), text]}, markup)
    if spec.end:  # a block of calls with one tag around them
        content = _choice_of_tags(spec, strict)
        tags = [{"type": "tag", "begin": spec.begin.lstrip("\n"), "content": content, "end": spec.end}]
    else:
        tags = _tags(spec, strict)
    free = {
        "type": "triggered_tags",
        "triggers": [spec.trigger],
        "tags": tags,
        "at_least_one": False,
        "stop_after_first": not spec.is_parallel,
    }
    return _source(free, markup)


def _source(answer: Mapping[str, Any], markup: tuple[str, ...]) -> GrammarSource:
    text = json.dumps({"type": "structural_tag", "format": answer})
    return GrammarSource("structural_tag", check_grammar_size(text), markup)


def _calls(spec: ToolGrammarSpec, strict: Sequence[bool]) -> dict[str, Any]:
    ends = [{"type": "const_string", "value": text} if text else None for text in (spec.begin, spec.end)]
    parts = [ends[0], _choice_of_tags(spec, strict), ends[1]]
    return {"type": "sequence", "elements": [part for part in parts if part is not None]}


def _choice_of_tags(spec: ToolGrammarSpec, strict: Sequence[bool]) -> dict[str, Any]:
    return {
        "type": "tags_with_separator",
        "tags": _tags(spec, strict),
        "separator": spec.separator,
        "at_least_one": True,
        "stop_after_first": not spec.is_parallel,
    }


def _tags(spec: ToolGrammarSpec, strict: Sequence[bool]) -> list[dict[str, Any]]:
    return [
        {
            "type": "tag",
            "begin": tag.begin,
            "content": {"type": "grammar", "grammar": _arguments(spec, tag.name, tag.schema, is_strict=is_strict)},
            "end": tag.end,
        }
        for tag, is_strict in zip(spec.tags, strict, strict=True)
    ]


def _arguments(spec: ToolGrammarSpec, name: str, schema: dict[str, Any], *, is_strict: bool) -> str:
    write = dsml_arguments if spec.is_dsml else _json_arguments
    try:
        return write(schema)
    except GrammarError as error:
        if is_strict:
            raise ToolSchemaError(name, str(error)) from error
        return write(_ANY_ARGUMENTS)


def _json_arguments(schema: dict[str, Any]) -> str:
    return json_schema_source(as_object_schema(schema)).text
