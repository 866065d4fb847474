"""StructuredOutputsParams: structured output as `SamplingParams` asks for it, in vLLM's names."""

from typing import Any

import msgspec

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.describe import (
    JSON_OBJECT,
    choice_source,
    ebnf_source,
    json_schema_source,
    regex_source,
)
from deepseek_engine.grammar.source import GrammarSource


class StructuredOutputsParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the answer must look like: exactly one field is given.

    Attributes:
        json: a JSON schema, decoded or as text.
        regex: a regular expression that the whole answer matches.
        choice: texts of which the answer is one.
        grammar: a grammar in GBNF; its rule `root` is the whole answer.
        json_object: any JSON object.

    Raises:
        GrammarError: none or several are given.
    """

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool = False

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(self.__struct_fields__)
            found = ", ".join(given) or "none of them"
            raise GrammarError(f"structured_outputs takes exactly one of {names}; there is {found}")

    def to_source(self) -> GrammarSource:
        """The grammar that the field describes.

        Raises:
            GrammarError: it is wrong or too large.
        """
        if self.json is not None:
            return json_schema_source(self.json)
        if self.regex is not None:
            return regex_source(self.regex)
        if self.choice is not None:
            return choice_source(self.choice)
        return JSON_OBJECT if self.grammar is None else ebnf_source(self.grammar)
