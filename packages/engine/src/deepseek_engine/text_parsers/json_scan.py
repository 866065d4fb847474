"""Where a JSON object ends in a text that comes in pieces."""

import json
import re
from typing import Any, Final, NoReturn, cast

from deepseek_engine.text_parsers.source import MalformedError

MAX_DEPTH: Final = 64
"""Nesting of arguments; Python's JSON parser recurses."""

_OUTSIDE: Final = re.compile(r'["{}\[\]]')
_INSIDE: Final = re.compile(r'["\\]')


class JsonScanner:
    """Follows strings and brackets, each character once.

    Args:
        pause_depth: stop before the bracket that opens this depth, the first time.
    """

    def __init__(self, pause_depth: int | None = None) -> None:
        self._pause_depth = pause_depth
        self._depth = 0
        self._is_string = False
        self._is_escaped = False
        self.is_done = False

    def scan(self, text: str) -> int | None:
        """The end of the object, or of the text before the pause, in this piece; None if it is in a later one.

        Raises:
            MalformedError: it does not begin with a brace, or is nested too deep.
        """
        if not self._depth and text and text[0] != "{":
            raise MalformedError
        at = 1 if self._is_escaped else 0
        if text:
            self._is_escaped = False
        while at < len(text):
            found = (_INSIDE if self._is_string else _OUTSIDE).search(text, at)
            if found is None:
                break
            at = found.end()
            if found[0] == '"':
                self._is_string = not self._is_string
            elif found[0] == "\\":
                self._is_escaped = at == len(text)
                at += 1
            elif found[0] in "{[":
                if self._pause_depth == self._depth + 1 and found[0] == "{":
                    self._pause_depth = None
                    return at - 1
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise MalformedError
            else:
                self._depth -= 1
                if not self._depth:
                    self.is_done = True
                    return at
        return None


def load_object(text: str) -> dict[str, Any]:
    """The object that the text is.

    Raises:
        MalformedError: it is none.
    """
    value = load_value(text)
    if not isinstance(value, dict):
        raise MalformedError
    return cast("dict[str, Any]", value)


def load_value(text: str) -> Any:
    """The JSON value that the text is. Lone surrogates are refused: no client could decode them.

    Raises:
        MalformedError: it is none.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedError from error
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
