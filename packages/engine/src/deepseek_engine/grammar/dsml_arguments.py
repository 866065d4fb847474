"""Arguments in DeepSeek's markup of V3.2 and V4: a tag for each parameter, text as it is, everything else as JSON."""

from typing import Any, Final, cast

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.json_nodes import VALUE, json_rules
from deepseek_engine.grammar.json_schema.accept import accepts
from deepseek_engine.grammar.json_schema.compiler import SchemaCompiler
from deepseek_engine.grammar.json_schema.merge import flatten
from deepseek_engine.grammar.json_schema.objects import object_fields, required_names
from deepseek_engine.grammar.json_schema.resolve import Schema, as_schema
from deepseek_engine.grammar.nodes import Chars, Node, Ref, Repeat, alt, optional, seq, to_ebnf

_END: Final = "｜DSML｜parameter>\n"
_OPEN: Final = '<｜DSML｜parameter name="'
_ALL: Final = ~Chars(())
_ROOT_KEYWORDS: Final = frozenset({"type", "properties", "required", "additionalProperties"})


def as_object_schema(schema: Schema) -> Schema:
    """The schema, which accepts objects only from now on.

    Raises:
        GrammarError: it accepts none.
    """
    given = schema.get("type", "object")
    kinds = cast("list[Any]", given) if isinstance(given, list) else [given]
    if "object" not in kinds:
        raise GrammarError(f"type={given!r}: arguments are an object")
    return {**schema, "type": "object"}


def dsml_arguments(schema: Schema) -> str:
    """The grammar of parameters that make an object which the schema accepts.

    Parameters come in the schema's order. Where it names none there is one at the most: a second one could have the
    first one's name.

    Raises:
        GrammarError: it is wrong, or needs what a grammar cannot check.
    """
    text = to_ebnf(_DsmlCompiler(as_object_schema(schema)).compile())
    if text is None:
        raise GrammarError("no arguments satisfy the schema")
    return text


class _DsmlCompiler(SchemaCompiler):
    """A schema's top level as parameters, what is in them as JSON."""

    def compile(self) -> dict[str, Node]:
        """The rules; `root` is all parameters."""
        flat = flatten(self._schema, self._resolver)
        for keyword in flat.keys() - _ROOT_KEYWORDS:
            raise GrammarError(f"#: {keyword} is not supported for arguments as a whole in this model's calls")
        properties, required = object_fields(flat, "properties"), required_names(flat)
        schemas = {**dict.fromkeys(required, True), **properties}
        parts: list[Node] = []
        for name in [*properties, *(name for name in required if name not in properties)]:
            parameter = self._parameter(name, schemas[name])
            parts.append(parameter if name in required else optional(parameter))
        rest = flat.get("additionalProperties", True)
        if not parts and rest is not False:
            if rest is not True and rest != {}:
                raise GrammarError("#: additionalProperties with a schema is not supported in this model's calls")
            parts.append(optional(self._unnamed()))
        self._rules = {"root": seq(*parts), **self._rules}
        return {**self._rules, **_text_rules(), **json_rules()}

    def _parameter(self, name: str, schema: Any) -> Node:
        if '"' in name:
            raise GrammarError(f"#: the name {name!r} has a quotation mark, which this model's calls cannot hold")
        flat = flatten(as_schema(schema), self._resolver)
        head = f'{_OPEN}{name}" string="'
        if flat == {"type": "string"}:
            return seq(head + 'true">', Ref("raw"))
        words = [value for value in flat.get("enum", ()) if accepts(flat, value)]
        if words and all(isinstance(word, str) and "</" not in word for word in words):
            return seq(head + 'true">', alt(*words), "</" + _END)
        return seq(head + 'false">', self._value(schema, f"#/{name}"), "</" + _END)

    def _unnamed(self) -> Node:
        letter = Chars.of("_", (ord("a"), ord("z")), (ord("A"), ord("Z")))
        name = seq(letter, Repeat(letter | Chars.of((ord("0"), ord("9"))), 0, 63))
        return seq(_OPEN, name, '" string="', alt(seq('true">', Ref("raw")), seq('false">', VALUE, "</" + _END)))


def _text_rules() -> dict[str, Node]:
    """Any text up to the closing tag, recursive to the right as JSON strings are."""
    raw, opened, closing = Ref("raw"), Ref("raw_opened"), Ref("raw_closing")
    return {
        "raw": alt(seq("<", opened), seq(_ALL - Chars.of("<"), raw)),
        "raw_opened": alt(seq("<", opened), seq("/", closing), seq(_ALL - Chars.of("</"), raw)),
        "raw_closing": alt(_END, seq("<", opened), seq(_ALL - Chars.of("<", "｜"), raw)),
    }
