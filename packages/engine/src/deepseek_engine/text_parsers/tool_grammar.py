"""What an answer that must call a tool looks like: the markup around each tool's schema, for constrained decoding."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from deepseek_engine.text_parsers.markup import AnswerFormat, CallStyle

_ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class ToolTag:
    """One tool's call: what comes before its arguments, their JSON schema, and what comes after them."""

    name: str
    begin: str
    schema: dict[str, Any]
    end: str


@dataclass(frozen=True, slots=True)
class ToolGrammarSpec:
    """An answer of calls and nothing else.

    Attributes:
        begin: what it begins with.
        tags: the calls to choose from.
        separator: between two calls.
        end: what it ends with.
        is_dsml: arguments are DSML parameters, not a JSON object.
        is_parallel: there may be more than one call.
        trigger: the tag that begins calls after text; empty where they have none, and begin the answer.
        other_triggers: tags that begin calls of another form.
    """

    begin: str
    tags: tuple[ToolTag, ...]
    separator: str
    end: str
    is_dsml: bool
    is_parallel: bool
    trigger: str
    other_triggers: tuple[str, ...]

    @property
    def begin_of_calls(self) -> str:
        """What every answer of calls begins with, at the least one character."""
        return (self.begin or self.tags[0].begin).lstrip("\n")


def tool_grammar_spec(
    answer_format: AnswerFormat, tools: Sequence[dict[str, Any]], *, is_parallel: bool = True
) -> ToolGrammarSpec | None:
    """The grammar of an answer that calls one of the tools, or several.

    Args:
        answer_format: the model's.
        tools: those that may be called, in OpenAI's form; one of them for a named function.
        is_parallel: whether there may be several calls.

    Returns:
        The grammar; None if the format has no calls, or calls that are no JSON (Llama 3.2's).
    """
    markup = answer_format.tools
    if markup is None:
        return None
    style = markup.styles[0]
    if style.body == "pythonic":
        return None
    lines = "\n" if style.body == "dsml" else ""
    opening = "" if markup.bare_start else markup.opens[0]
    return ToolGrammarSpec(
        begin=("\n\n" if lines else "") + (opening + style.lead + lines if style.block_close else ""),
        tags=tuple(_tag(style, "" if style.block_close else opening, tool["function"]) for tool in tools),
        separator={"tagged": "", "json": style.separator or "\n", "dsml": ""}[style.body],
        end=style.block_close,
        is_dsml=style.body == "dsml",
        is_parallel=is_parallel,
        trigger=opening,
        other_triggers=tuple(tag for tag in markup.opens if tag != opening),
    )


def _tag(style: CallStyle, opening: str, function: dict[str, Any]) -> ToolTag:
    name, schema = function["name"], function.get("parameters") or _ANY_OBJECT
    close = "".join(style.call_close)
    match style.body:
        case "dsml":
            return ToolTag(name, f"{style.call_open}{name}{style.name_end}\n", schema, f"{close}\n")
        case "json":
            key = "arguments" if style.call_close or style.block_close else "parameters"
            newline = "\n" if close else ""
            begin = f'{opening}{newline}{{"name": {json.dumps(name)}, "{key}": '
            return ToolTag(name, begin, schema, f"}}{newline}{close}")
        case _:
            newline = "\n" if style.name_end.startswith("\n") else ""
            return ToolTag(name, f"{style.call_open}{name}{style.name_end}{newline}", schema, newline + close)
