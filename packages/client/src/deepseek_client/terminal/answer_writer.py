"""Shows one answer while it streams: styled on a terminal, as it came elsewhere."""

import os
import re
from typing import TextIO

from deepseek_client.terminal.markdown import DIM, RESET, MarkdownStyler

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What steers a terminal: an answer could clear the screen, or type at the shell's prompt."""


def is_styled(out: TextIO, *, plain: bool = False) -> bool:
    """Whether `out` is a terminal that shows styles, and nobody asked for none (NO_COLOR)."""
    return not plain and out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class AnswerWriter:
    """Writes the pieces of one answer. Reasoning is dimmed on a terminal, and left out of a pipe.

    Args:
        out: where to.
        styled: whether to show Markdown as styles.
    """

    def __init__(self, out: TextIO, *, styled: bool) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._styler = MarkdownStyler() if styled else None
        self._is_reasoning = False

    def reasoning(self, text: str) -> None:
        """A piece of what the model thinks before it answers."""
        if self._styler is not None:
            text = self._harmless(text)
            self._write(text if self._is_reasoning else DIM + text)
            self._is_reasoning = True

    def content(self, text: str) -> None:
        """A piece of the answer."""
        if self._is_reasoning:
            self._write(f"{RESET}\n\n")
            self._is_reasoning = False
        text = self._harmless(text)
        self._write(text if self._styler is None else self._styler.feed(text))

    def end(self) -> None:
        """Write what was held back, and a line end, also where the answer was stopped."""
        rest = "" if self._styler is None else self._styler.finish()
        self._write((RESET if self._is_reasoning else "") + rest + "\n")
        self._is_reasoning = False

    def _harmless(self, text: str) -> str:
        return _CONTROL.sub("\ufffd", text.replace("\r", "")) if self._is_terminal else text

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
