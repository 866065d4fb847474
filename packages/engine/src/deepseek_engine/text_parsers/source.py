"""Text that comes in pieces, read by generators that stop where it ends so far.

Every reader decides by the characters of the text alone, never by where a piece ended: it takes what is certain,
yields when it has to see more, and holds back at most a tag's length. That makes parsing independent of chunking.
"""

import re
from collections.abc import Callable, Generator
from typing import Final, TypeVar

Result = TypeVar("Result")
Reading = Generator[None, None, Result]
"""A reader that yields when it needs more text and returns its result."""

MAX_RECORDED_CHARS: Final = 1 << 20
"""Characters of one tool call's markup."""
MAX_SKIPPED_CHARS: Final = 1024


class MalformedError(Exception):
    """The text is not what the format says."""


class TagSet:
    """Tags to look for together, with up to `max_newlines` newlines before them that belong to the tag."""

    def __init__(self, tags: tuple[str, ...], *, max_newlines: int = 0) -> None:
        self.tags = tags
        self._max_newlines = max_newlines
        alternatives = "|".join(map(re.escape, sorted(tags, key=len, reverse=True)))
        self.pattern = re.compile(f"\n{{0,{max_newlines}}}(?:{alternatives})" if tags else "(?!)")
        self._prefixes = frozenset(tag[:length] for tag in tags for length in range(1, len(tag)))
        self._longest = max(map(len, self._prefixes), default=0)
        self._firsts = frozenset(tag[0] for tag in tags)

    def held_from(self, text: str) -> int:
        """Where the part begins that may still become a tag; the text's length if there is none."""
        end = len(text)
        held = end
        for start in range(max(end - self._longest, 0), end):
            if text[start] in self._firsts and text[start:] in self._prefixes:
                held = start
                break
        earliest = max(held - self._max_newlines, 0)
        while held > earliest and text[held - 1] == "\n":
            held -= 1
        return held


class Source:
    """The text and its readers. What `record` has begun, `recorded` gives back, so that it can become content."""

    def __init__(self) -> None:
        self._text = ""
        self._is_closed = False
        self._record: list[str] = []
        self._num_recorded = 0

    def feed(self, text: str) -> None:
        """Add a piece."""
        self._text += text

    def close(self) -> None:
        """No more will come."""
        self._is_closed = True

    def record(self, before: str = "") -> None:
        """Begin a new record with `before`."""
        self._record = [before]
        self._num_recorded = 0

    @property
    def recorded(self) -> str:
        """All that was taken since `record`."""
        return "".join(self._record)

    def put_back(self) -> None:
        """Let what was taken since `record` come again."""
        self._text = self.recorded + self._text
        self.record()

    def copy_until(self, tags: TagSet, emit: Callable[[str], None]) -> Reading[str | None]:
        """Emit text up to the first of the tags; the tag as it was written, or None where the text ends."""
        while True:
            found = tags.pattern.search(self._text)
            cut = found.start() if found else len(self._text) if self._is_closed else tags.held_from(self._text)
            if cut:
                emit(self._text[:cut])
            if found:
                self._text = self._text[found.end() :]
                return found[0]
            self._text = self._text[cut:]
            if self._is_closed:
                return None
            yield

    def skip(self, characters: str = " \t\r\n") -> Reading[None]:
        """Take all of these characters that come next, up to a number that no format comes near."""
        room = MAX_SKIPPED_CHARS
        while room:
            next_text = self._text[:room]
            rest = next_text.lstrip(characters)
            room -= len(self._take(len(next_text) - len(rest)))
            if rest or self._is_closed:
                return
            yield

    def peek(self) -> Reading[str]:
        """The next character, not taken; empty at the end."""
        while not self._text and not self._is_closed:
            yield
        return self._text[:1]

    def option(self, *literals: str) -> Reading[str | None]:
        """Take the longest of the literals that comes next, or nothing.

        None of them may be the beginning of another plus text that can follow it.
        """
        while True:
            matches = [literal for literal in literals if self._text.startswith(literal)]
            is_open = not self._is_closed and any(
                len(literal) > len(self._text) and literal.startswith(self._text) for literal in literals
            )
            if not is_open:
                best = max(matches, key=len, default=None)
                self._take(len(best or ""))
                return best
            yield

    def expect(self, *literals: str) -> Reading[str]:
        """Take one of the literals.

        Raises:
            MalformedError: another text comes, or none.
        """
        found = yield from self.option(*literals)
        if found is None:
            raise MalformedError
        return found

    def until(self, end: str, limit: int) -> Reading[str]:
        """Take the text before `end`, and `end`.

        Raises:
            MalformedError: it is not within `limit` characters.
        """
        while True:
            at = self._text.find(end, 0, limit + len(end))
            if at >= 0:
                text = self._text[:at]
                self._take(at + len(end))
                return text
            if self._is_closed or len(self._text) >= limit + len(end):
                raise MalformedError
            yield

    def stream_until(self, end: TagSet, emit: Callable[[str], None]) -> Reading[str]:
        """Take and emit text up to one of the tags, and take the tag.

        Raises:
            MalformedError: the text ends before one.
        """
        while True:
            found = end.pattern.search(self._text)
            cut = found.start() if found else end.held_from(self._text)
            if cut:
                emit(self._take(cut))
            if found:
                return self._take(len(found[0]))
            if self._is_closed:
                raise MalformedError
            yield

    def through(self, scan: Callable[[str], int | None], emit: Callable[[str], None]) -> Reading[None]:
        """Take and emit text until `scan` says where it ends; `scan` sees each character once.

        Raises:
            MalformedError: the text ends before that.
        """
        while True:
            text = self._text
            end = scan(text)
            taken = self._take(len(text) if end is None else end)
            if taken:
                emit(taken)
            if end is not None:
                return
            if self._is_closed:
                raise MalformedError
            yield

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        if taken:
            self._record.append(taken)
            self._num_recorded += count
            if self._num_recorded > MAX_RECORDED_CHARS:
                raise MalformedError
        return taken
