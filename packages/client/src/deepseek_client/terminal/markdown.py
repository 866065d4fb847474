"""One answer on a terminal while it streams: each piece of Markdown is styled as soon as its meaning is certain.

Bold, italics, code, headings, lists, quotes, rules and fenced code, which is what models write. Everything else is
shown as it stands, so nothing is ever lost.
"""

import os
import re
from typing import TextIO

BOLD, DIM, ITALIC, UNDERLINE, CODE, RESET = "\x1b[1m", "\x1b[2m", "\x1b[3m", "\x1b[4m", "\x1b[36m", "\x1b[0m"
RULE_WIDTH = 40

_UNDECIDED = re.compile(r"[ \t]*(#{0,6}|[-*+_]{0,3}|\d{0,3}[.)]?|>|`{0,3}|~{0,3})[ \t]?\Z")
"""The beginning of a line that may still become a heading, a list, a quote, a rule or a fence."""

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+")
_BULLET = re.compile(r"([ \t]*)[-*+][ \t]+")
_QUOTE = re.compile(r" {0,3}>[ \t]?")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*\Z")


class MarkdownStyler:
    """Turns pieces of one Markdown text, split anywhere, into pieces for a terminal."""

    def __init__(self) -> None:
        self._held = ""  # what cannot be shown yet
        self._at_start = True  # of a line
        self._fence: str | None = None  # the characters that opened the code that we are in
        self._styles: list[str] = []
        self._before = " "  # the last character shown, which says whether a star opens or closes

    def feed(self, text: str) -> str:
        """What can be shown now."""
        self._held += text
        shown: list[str] = []
        while self._held:
            piece = self._start_line() if self._at_start else self._go_on()
            if piece is None:
                break
            shown.append(piece)
        return "".join(shown)

    def finish(self) -> str:
        """What was held back, and the end of all styles."""
        if self._at_start and self._held and self._fence is None and _RULE.match(self._held):
            shown = f"{DIM}{'─' * RULE_WIDTH}{RESET}"
        elif self._at_start and self._held and _FENCE.match(self._held):
            shown = ""
        else:
            self._at_start = False
            shown = self._inline(self._held, is_last=True) if self._fence is None else self._held
        self._held = ""
        ended = RESET if self._styles or self._fence is not None else ""
        self._styles, self._fence, self._at_start = [], None, True
        return shown + ended

    def _start_line(self) -> str | None:
        """Find out what kind of line begins; None while that is open."""
        line, newline, _ = self._held.partition("\n")
        is_whole = bool(newline)
        if self._fence is not None or _FENCE.match(line):
            return self._fenced_line(line, is_whole=is_whole)
        if not is_whole and _UNDECIDED.match(line):
            return None
        if _RULE.match(line):
            return self._take(len(line), f"{DIM}{'─' * RULE_WIDTH}{RESET}") if is_whole else None
        self._at_start = False
        if match := _HEADING.match(line):
            style = BOLD + UNDERLINE if len(match[1]) == 1 else BOLD
            self._styles = [style]
            return self._take(match.end(), style)
        if match := _BULLET.match(line):
            return self._take(match.end(), f"{match[1]}• ")
        if match := _QUOTE.match(line):
            self._styles = [ITALIC]
            return self._take(match.end(), f"{DIM}│{RESET} {ITALIC}")
        return ""

    def _fenced_line(self, line: str, *, is_whole: bool) -> str | None:
        """A line of code, or a fence around it."""
        match = _FENCE.match(line)
        if self._fence is None:
            if not is_whole or match is None:
                return None
            self._fence = match[1]
            label = line[match.end() :].strip()
            return self._take(len(line) + 1, f"{DIM}── {label or 'code'} ──{RESET}\n{CODE}")
        if match is not None and match[1].startswith(self._fence) and not line[match.end() :].strip():
            if not is_whole:
                return None
            self._fence = None
            return self._take(len(line) + 1, f"{RESET}{DIM}──{RESET}\n")
        if not is_whole and self._fence.startswith(line.strip()[:3]):
            return None
        if is_whole:
            return self._take(len(line) + 1, f"{line}\n")
        self._at_start = False
        return ""

    def _go_on(self) -> str | None:
        """The rest of a line whose kind is known."""
        line, newline, _ = self._held.partition("\n")
        is_whole = bool(newline)
        if self._fence is not None:
            self._at_start = is_whole
            return self._take(len(line) + len(newline), line + newline)
        shown = self._inline(line, is_last=is_whole)
        if is_whole:
            self._held = self._held[len(line) + 1 :]
            shown += (RESET if self._styles else "") + "\n"
            self._styles, self._at_start, self._before = [], True, " "
            return shown
        return shown or None

    def _inline(self, line: str, *, is_last: bool) -> str:
        """Styles inside a line; leaves in `_held` what a next character could change."""
        shown: list[str] = []
        at = 0
        while at < len(line):
            char = line[at]
            if char not in "*_`":
                shown.append(char)
                self._before = char
                at += 1
                continue
            end = at
            while end < len(line) and line[end] == char:
                end += 1
            if end == len(line) and not is_last:
                break  # the run may go on, and what follows says whether it opens
            after = line[end] if end < len(line) else " "
            shown.append(self._mark(line[at:end], after))
            at = end
        self._held = line[at:] if not is_last else self._held
        return "".join(shown)

    def _mark(self, run: str, after: str) -> str:
        """A run of stars, underscores or backticks: a change of style, or just characters."""
        styles = {"`": CODE, "*": ITALIC, "_": ITALIC, "**": BOLD, "__": BOLD, "***": BOLD + ITALIC}
        style = styles.get(run)
        in_code = CODE in self._styles
        if style is None or (in_code and style != CODE):
            return self._plain(run)
        if style in self._styles and (not self._before.isspace() or style == CODE):
            if run[0] == "_" and after.isalnum():
                return self._plain(run)
            self._styles.remove(style)
            return RESET + "".join(self._styles)
        if style not in self._styles and (not after.isspace() or style == CODE):
            if run[0] == "_" and self._before.isalnum():
                return self._plain(run)
            self._styles.append(style)
            return style
        return self._plain(run)

    def _plain(self, run: str) -> str:
        self._before = run[-1]
        return run

    def _take(self, count: int, shown: str) -> str:
        self._held = self._held[count:]
        return shown


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
