r"""JSON as grammar trees: white space, strings, literals, and the rules for a value of any kind.

Everything is narrower than JSON allows, where that keeps a reader's life simple: white space as a printer writes it,
numbers that a double holds, `\u` escapes that are characters.
"""

import json
from typing import Any, Final

from deepseek_engine.grammar.nodes import Alt, Chars, Node, Ref, Repeat, Seq, Text, alt, optional, seq

MAX_INDENT: Final = 32
"""Spaces or tabs at the beginning of a line at most: weak models write them without end."""

_CONTROL: Final = Chars.of((0, 0x1F))
_QUOTED: Final = Chars.of('"\\')
_ESCAPED: Final = _CONTROL | _QUOTED
_PLAIN: Final = ~_ESCAPED
_HEX: Final = Chars.of("0123456789abcdefABCDEF")
_SHORT_ESCAPES: Final = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", '"': '"', "\\": "\\"}

WS: Final = Ref("ws")
STRING: Final = Ref("string")
_STRING_REST: Final = Ref("string_rest")
VALUE: Final = Ref("value")
OBJECT: Final = Ref("object")
ARRAY: Final = Ref("array")
INTEGER: Final = Ref("integer")
NUMBER: Final = Ref("number")
BOOLEAN: Final = alt("true", "false")
NULL: Final = Text("null")

DIGIT: Final = Chars.of("0123456789")
MAX_INTEGER_DIGITS: Final = 15
"""Doubles tell all numbers of so many digits apart."""
_WHOLE: Final = alt("0", seq(Chars.of("123456789"), Repeat(DIGIT, 0, MAX_INTEGER_DIGITS - 1)))


def json_rules() -> dict[str, Node]:
    """The rules that the names above refer to."""
    escape = alt(
        Chars.of('"\\/bfnrt'),
        seq(
            "u",
            alt(seq(_HEX - Chars.of("dD"), Repeat(_HEX, 3, 3)), seq(Chars.of("dD"), Chars.of("01234567"), _HEX, _HEX)),
        ),
    )
    fraction = seq(".", Repeat(DIGIT, 1, MAX_INTEGER_DIGITS))
    exponent = seq(Chars.of("eE"), optional(Chars.of("+-")), Repeat(DIGIT, 1, 2))
    return {
        "ws": alt("", " ", seq("\n", Repeat(Chars.of(" \t"), 0, MAX_INDENT))),
        # Recursive to the right: the library then knows once and for all which tokens stay within a string. Any other
        # form costs tens of milliseconds a token.
        "string": seq('"', _STRING_REST),
        "string_rest": alt('"', seq(_PLAIN, _STRING_REST), seq("\\", escape, _STRING_REST)),
        "integer": seq(optional(Text("-")), _WHOLE),
        "number": seq(optional(Text("-")), _WHOLE, optional(fraction), optional(exponent)),
        "value": alt(OBJECT, ARRAY, STRING, NUMBER, BOOLEAN, NULL),
        "object": json_object(members(json_member(STRING, VALUE), 0, None)),
        "array": json_array(members(VALUE, 0, None)),
    }


def json_object(inner: Node) -> Node:
    """Braces around members."""
    return seq("{", WS, inner, WS, "}")


def json_array(inner: Node) -> Node:
    """Square brackets around items."""
    return seq("[", WS, inner, WS, "]")


def json_member(key: Node, value: Node) -> Node:
    """A key with its value."""
    return seq(key, ":", optional(Text(" ")), value)


def members(item: Node, low: int, high: int | None) -> Node:
    """From `low` to `high` items with commas between them."""
    if high == 0:
        return Text("")
    rest = Repeat(seq(",", WS, item), max(low - 1, 0), None if high is None else high - 1)
    some = seq(item, rest)
    return some if low else optional(some)


def json_literal(value: Any) -> Node:
    """Exactly this value, on one line."""
    return Text(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def json_string(low: int, high: int | None) -> Node:
    """A string of so many characters; one with an upper bound holds nothing that needs an escape."""
    if high is not None:
        return seq('"', Repeat(_PLAIN, low, high), '"')
    return seq('"', Repeat(_PLAIN, low, low), _STRING_REST) if low else STRING


def json_string_of(node: Node) -> Node:
    """A JSON string whose content is a text of the node, a tree of `parse_regex`."""
    return seq('"', _inside_string(node), '"')


def _inside_string(node: Node) -> Node:
    match node:
        case Text(text):
            return Seq(tuple(_escaped(char) if char in _ESCAPED_CHARS else Text(char) for char in text))
        case Chars():
            return _escaped_set(node)
        case Seq(parts):
            return Seq(tuple(_inside_string(part) for part in parts))
        case Alt(options):
            return Alt(tuple(_inside_string(option) for option in options))
        case Repeat(inner, low, high):
            return Repeat(_inside_string(inner), low, high)
        case Ref():
            return node


def _escaped_set(chars: Chars) -> Node:
    """The members that stand for themselves, if there are any: mixed with escapes, repetitions are slow to follow."""
    plain = chars & _PLAIN
    return Alt(tuple(_escaped(chr(code)) for code in chars & _ESCAPED)) if plain.is_empty else plain


def _escaped(char: str) -> Node:
    return Text("\\" + (_SHORT_ESCAPES.get(char) or f"u{ord(char):04x}"))


_ESCAPED_CHARS: Final = frozenset(map(chr, _ESCAPED))
