"""Strings of a schema: lengths, patterns and formats.

`format` is an annotation, as JSON Schema has it by default: the formats below are kept to, where nothing else restricts
the string, and others are ignored.
"""

from typing import Any, Final

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.json_nodes import STRING, json_string, json_string_of
from deepseek_engine.grammar.json_schema.resolve import Schema, as_count
from deepseek_engine.grammar.limits import MAX_REPEATS
from deepseek_engine.grammar.nodes import NEVER, Node
from deepseek_engine.grammar.regex import parse_regex, with_length

_DATE: Final = (
    r"(?:\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))|(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][48]|[13579][26]|[2468]0)00)-02-29)"
)
_TIME: Final = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_BYTE: Final = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"
_HEX: Final = "[0-9a-f]"
FORMATS: Final = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": r"P(?:\d{1,4}W|\d{1,4}D|(?:\d{1,4}D)?T\d{1,4}[HMS])",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_LABEL}(?:\.{_LABEL})+",
    "hostname": rf"{_LABEL}(?:\.{_LABEL})*",
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",
    "ipv6": r"(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
    "uri": rf"https?://{_LABEL}(?:\.{_LABEL})*(?::[1-9]\d{{0,3}})?(?:/[A-Za-z0-9._~-]*)*",
    "uuid": rf"{_HEX}{{8}}-{_HEX}{{4}}-[1-8]{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}",
}


def string_node(flat: Schema) -> Node:
    """The strings that a flat schema allows.

    Raises:
        GrammarError: a keyword is wrong or cannot be followed.
    """
    low, high = length_limits(flat)
    if high is not None and low > high:
        return NEVER
    if "pattern" in flat:
        return json_string_of(_pattern(flat["pattern"], low, high))
    named = flat.get("format")
    if low == 0 and high is None:
        return json_string_of(parse_regex(FORMATS[named])) if named in FORMATS else STRING
    return json_string(low, high)


def length_limits(flat: Schema) -> tuple[int, int | None]:
    """The fewest and the most characters.

    Raises:
        GrammarError: one is wrong, or too large.
    """
    low = as_count(flat.get("minLength", 0), "minLength")
    high = as_count(flat["maxLength"], "maxLength") if "maxLength" in flat else None
    return check_repeats(low, "minLength"), None if high is None else check_repeats(high, "maxLength")


def check_repeats(count: int, keyword: str) -> int:
    """The count, if a grammar may have it.

    Raises:
        GrammarError: it is too large.
    """
    if count > MAX_REPEATS:
        raise GrammarError(f"{keyword}={count} is too large: at most {MAX_REPEATS} is supported")
    return count


def _pattern(pattern: Any, low: int, high: int | None) -> Node:
    if not isinstance(pattern, str):
        raise GrammarError("pattern must be a string")
    node = with_length(parse_regex(pattern), low, high)
    if node is None:
        raise GrammarError("pattern beside minLength or maxLength: write the length into the pattern, like [a-z]{1,20}")
    return node
