"""Calls written as Python: `[name(key="value"), ...]`, Meta's format for Llama 3.2 and 4."""

import ast
import json
import re
from typing import Any, Final

from deepseek_engine.text_parsers.call import CallBuilder
from deepseek_engine.text_parsers.json_scan import MAX_DEPTH, load_value
from deepseek_engine.text_parsers.markup import CallStyle
from deepseek_engine.text_parsers.source import MalformedError, Reading, Source

MAX_PYTHONIC_CHARS: Final = 16_384
"""Characters of one call: Python's own parser reads it, which recurses."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_OUTSIDE: Final = re.compile(r"""["'(){}\[\]]""")
_INSIDE: Final = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}


def read_pythonic(source: Source, call: CallBuilder, style: CallStyle) -> Reading[None]:  # noqa: ARG001  ReadBody's
    """One call whose arguments are keywords with literal values; read as a whole."""
    name = yield from source.until("(", 256)
    if _NAME.fullmatch(name) is None:
        raise MalformedError
    call.start(name)
    pieces: list[str] = []
    yield from source.through(_ArgumentsScanner().scan, pieces.append)
    arguments = _keywords("call(" + "".join(pieces))
    call.stream(json.dumps(arguments, ensure_ascii=False))
    call.check()


class _ArgumentsScanner:
    """Finds the bracket that closes the one already open."""

    def __init__(self) -> None:
        self._depth = 1
        self._quote = ""
        self._is_escaped = False
        self._num_chars = 0

    def scan(self, text: str) -> int | None:
        at = 1 if self._is_escaped else 0
        if text:
            self._is_escaped = False
        while at < len(text):
            found = (_INSIDE[self._quote] if self._quote else _OUTSIDE).search(text, at)
            if found is None:
                break
            at = found.end()
            if found[0] == "\\":
                self._is_escaped = at == len(text)
                at += 1
            elif found[0] in _INSIDE:
                self._quote = "" if self._quote else found[0]
            else:
                self._depth += 1 if found[0] in "([{" else -1
                if self._depth > MAX_DEPTH:
                    raise MalformedError
                if not self._depth:
                    return at
        return None


def _keywords(source: str) -> dict[str, Any]:
    if len(source) > MAX_PYTHONIC_CHARS:
        raise MalformedError
    try:
        node = ast.parse(source, mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            raise MalformedError
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
        if None in named or len(named) != len(node.keywords):
            raise MalformedError
        return load_value(json.dumps(named))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise MalformedError from error
