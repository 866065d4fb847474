"""Shows one answer while it streams: styled on a terminal, as it came elsewhere."""

import os
from typing import TextIO

from deepseek_client.terminal.markdown import DIM, RESET, MarkdownStyler


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
        self._styler = MarkdownStyler() if styled else None
        self._is_reasoning = False

    def reasoning(self, text: str) -> None:
        """A piece of what the model thinks before it answers."""
        if self._styler is not None:
            self._write(text if self._is_reasoning else DIM + text)
            self._is_reasoning = True

    def content(self, text: str) -> None:
        """A piece of the answer."""
        if self._is_reasoning:
            self._write(f"{RESET}\n\n")
            self._is_reasoning = False
        self._write(text if self._styler is None else self._styler.feed(text))

    def end(self) -> None:
        """Write what was held back, and a line end, also where the answer was stopped."""
        rest = "" if self._styler is None else self._styler.finish()
        self._write((RESET if self._is_reasoning else "") + rest + "\n")
        self._is_reasoning = False

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
