"""The lines that a user types, pastes or pipes."""

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, TextIO, cast

from deepseek_client.terminal.state import keep_line, read_history


class Lines(Protocol):
    """Where the user's lines come from."""

    def read(self) -> str | None:
        """The next line; None at the end. A paste is one line, with line ends in it.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        ...


class PipedLines:
    """Lines of a file or a pipe."""

    def __init__(self, source: TextIO) -> None:
        self._source = source

    def read(self) -> str | None:
        """The next line."""
        return self._source.readline() or None


class TypedLines:
    """Lines typed at a terminal, by readline where it is: arrow keys, the lines of earlier days, Tab for commands.

    A paste of many lines arrives whole (bracketed paste), and a line that ends in a backslash goes on with the next.
    """

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = commands
        try:
            self._readline: Any = importlib.import_module("readline")
        except ImportError:  # Windows, whose terminal edits lines itself
            self._readline = None
        if self._readline is not None:
            self._readline.parse_and_bind("set enable-bracketed-paste on")
            self._readline.parse_and_bind("tab: complete")
            self._readline.set_completer_delims(" \n")
            self._readline.set_completer(self._complete)
            self._readline.set_auto_history(False)
            for line in read_history():
                self._readline.add_history(line)

    def read(self) -> str | None:
        """The next line."""
        try:
            text = input("> ")
            while text.endswith("\\"):
                text = text[:-1] + "\n" + input("… ")
        except EOFError:
            return None
        if text.strip():
            keep_line(text)
            if self._readline is not None:
                self._readline.add_history(text)
        return text

    def _complete(self, text: str, state: int) -> str | None:
        if cast("int", self._readline.get_begidx()) != 0:
            return None
        found = [f"{name} " for name in self._commands if name.startswith(text)] if text.startswith("/") else []
        return found[state] if state < len(found) else None
