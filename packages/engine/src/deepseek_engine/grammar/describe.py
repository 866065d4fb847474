"""What a caller asks for, as a GrammarSource: every way of asking ends in one of a few small languages."""

import json
from collections.abc import Sequence
from typing import Any, Final

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.json_schema.compiler import schema_to_ebnf
from deepseek_engine.grammar.limits import MAX_CHOICES, MAX_GRAMMAR_CHARS, MAX_NESTING, MAX_SOURCE_BYTES
from deepseek_engine.grammar.nodes import to_ebnf
from deepseek_engine.grammar.regex import parse_regex
from deepseek_engine.grammar.source import GrammarSource

JSON_OBJECT: Final = GrammarSource("ebnf", schema_to_ebnf({"type": "object"}))


def json_schema_source(schema: Any) -> GrammarSource:
    """Answers that a JSON schema accepts.

    Args:
        schema: decoded JSON, or its text.

    Raises:
        GrammarError: it is no schema, or too large.
    """
    if isinstance(schema, str):
        check_size(schema, "the schema")
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the schema is not JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise GrammarError("the schema must be a JSON object")
    try:
        check_size(json.dumps(schema), "the schema")
        return _compiled(schema_to_ebnf(schema))
    except RecursionError:
        raise GrammarError("the schema is nested too deeply, or its $refs are too many in a row") from None


def regex_source(pattern: str) -> GrammarSource:
    """Answers that a regular expression matches as a whole.

    Raises:
        GrammarError: it is too large.
    """
    check_size(pattern, "the pattern")
    text = to_ebnf({"root": parse_regex(pattern)})
    if text is None:
        raise GrammarError("the pattern matches nothing")
    return _compiled(text)


def choice_source(choices: Sequence[str]) -> GrammarSource:
    """One of several texts.

    Raises:
        GrammarError: there is none, an empty one, or too many.
    """
    if not 0 < len(choices) <= MAX_CHOICES:
        raise GrammarError(f"there are {len(choices)} choices: from 1 to {MAX_CHOICES} are allowed")
    if not all(choices):
        raise GrammarError("a choice is empty: leave it out")
    text = " | ".join(json.dumps(choice) for choice in choices)
    return GrammarSource("ebnf", check_size(f"root ::= {text}", "the list of choices"))


def ebnf_source(grammar: str) -> GrammarSource:
    """Answers of a grammar in GBNF, whose rule `root` is the whole answer.

    Raises:
        GrammarError: it is too large or too deep.
    """
    check_size(grammar, "the grammar")
    depth = deepest = 0
    for character in grammar:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise GrammarError(f"the grammar has brackets {deepest} deep: at most {MAX_NESTING} are allowed")
    return GrammarSource("ebnf", grammar)


def _compiled(text: str) -> GrammarSource:
    return GrammarSource("ebnf", check_grammar_size(text))


def check_grammar_size(text: str) -> str:
    """The text of a grammar that was made of something else, if it is not too large.

    Raises:
        GrammarError: it is over MAX_GRAMMAR_CHARS.
    """
    if len(text) > MAX_GRAMMAR_CHARS:
        raise GrammarError(f"it becomes a grammar of {len(text)} characters: at most {MAX_GRAMMAR_CHARS} are allowed")
    return text


def check_size(text: str, what: str) -> str:
    """The text, if it is not too large.

    Raises:
        GrammarError: it is over MAX_SOURCE_BYTES, or holds half a surrogate pair.
    """
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise GrammarError(f"{what} is not valid Unicode: {error.reason}") from error
    if num_bytes > MAX_SOURCE_BYTES:
        raise GrammarError(f"{what} has {num_bytes} bytes: at most {MAX_SOURCE_BYTES} are allowed")
    return text
