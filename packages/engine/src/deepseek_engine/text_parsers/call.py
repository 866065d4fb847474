"""One tool call in the making."""

import json
from collections.abc import Callable, Collection
from typing import Any, Final

from deepseek_engine.text_parsers.events import Event, ToolArguments, ToolCallDropped, ToolCallEnd, ToolCallStart
from deepseek_engine.text_parsers.json_scan import load_object
from deepseek_engine.text_parsers.source import MalformedError

MAX_CALLS: Final = 128
"""Calls in one answer."""


class CallBuilder:
    """Takes one call's name and arguments, and says them as events while they come.

    The arguments' last brace waits for `commit`: what a caller has of a call that is never committed does not parse.

    Args:
        index: of the call.
        declared: names of the tools that may be called.
        emit: takes the events.
    """

    def __init__(self, index: int, declared: Collection[str], emit: Callable[[Event], None]) -> None:
        self.index = index
        self.is_started = False
        self.is_committed = False
        self._declared = declared
        self._emit = emit
        self._pieces: list[str] = []
        self._held = ""

    @property
    def arguments(self) -> str:
        """All that was streamed."""
        return "".join(self._pieces)

    def start(self, name: str) -> None:
        """The call has a name.

        Raises:
            MalformedError: no tool of that name was declared, or there are too many calls.
        """
        if name not in self._declared or self.index >= MAX_CALLS:
            raise MalformedError
        self.is_started = True
        self._emit(ToolCallStart(self.index, name))

    def stream(self, text: str) -> None:
        """More of the arguments."""
        self._pieces.append(text)
        text = self._held + text
        self._held = "}" if text.endswith("}") else ""
        if text := text[: len(text) - len(self._held)]:
            self._emit(ToolArguments(self.index, text))

    def check(self) -> dict[str, Any]:
        """The arguments, complete.

        Raises:
            MalformedError: they are no JSON object.
        """
        return load_object(self.arguments)

    def whole(self, name: str, arguments: dict[str, Any]) -> None:
        """Name and arguments at once.

        Raises:
            MalformedError: as `start` does.
        """
        self.start(name)
        self.stream(json.dumps(arguments, ensure_ascii=False))

    def commit(self) -> None:
        """The call is closed and `check` has passed."""
        self._emit(ToolArguments(self.index, self._held))
        self._emit(ToolCallEnd(self.index))
        self.is_committed = True

    def drop(self) -> None:
        """The call is none."""
        if self.is_started:
            self._emit(ToolCallDropped(self.index))
