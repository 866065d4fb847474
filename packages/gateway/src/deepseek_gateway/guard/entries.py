"""What a word list is made of: patterns, and what to do where one is found."""

import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from deepseek_gateway.errors import GatewayError
from deepseek_gateway.guard.fold import fold, is_mark, is_word
from deepseek_gateway.guard.regex import RegexError, parse

MAX_TEXT = 200
MAX_PATTERN = 128
"""Characters of a pattern: a stream holds back at most one less."""


MIN_SPACED = 3
"""Letters of a pattern that is found with something between them; two of Chinese and Japanese."""


class WordListError(GatewayError):
    """A list, an entry or a policy that cannot be used; the message names the place, the value and the way out."""


class Level(StrEnum):
    """What becomes of a hit.

    The request is refused, or the answer ends; the words are replaced; a person looks at it later; it is fine, and so
    is any other hit inside it.
    """

    BLOCK = "block"
    MASK = "mask"
    REVIEW = "review"
    ALLOW = "allow"


class Match(StrEnum):
    """How a pattern is found.

    Anywhere, as whole words of scripts that have them, as a safe regular expression, or by its letters with other
    characters between them (`guard.spaced`).
    """

    SUBSTRING = "substring"
    WORD = "word"
    REGEX = "regex"
    SPACED = "spaced"


class Direction(StrEnum):
    """Which texts a pattern is for: requests, answers, or both."""

    IN = "in"
    OUT = "out"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list. `valid_from` and `valid_until` are Unix seconds; `source` says who asked for it."""

    pattern: str
    level: Level = Level.BLOCK
    category: str = ""
    direction: Direction = Direction.BOTH
    match: Match = Match.SUBSTRING
    language: str = ""
    valid_from: float | None = None
    valid_until: float | None = None
    source: str = ""

    def check(self) -> None:
        """Refuse what could never be found, or not safely.

        Raises:
            WordListError: the fault and the way out.
        """
        for name in ("pattern", "category", "language", "source"):
            text: str = getattr(self, name)
            if any(unicodedata.category(char) in {"Cc", "Cs"} for char in text) or len(text) > MAX_TEXT:
                raise WordListError(f"{name} {text[:80]!r} has control characters, or more than {MAX_TEXT} characters")
        if len(self.pattern) > MAX_PATTERN or len(fold(self.pattern)) > MAX_PATTERN:
            raise WordListError(f"pattern of {len(self.pattern)} characters: the most is {MAX_PATTERN}")
        if self.valid_from is not None and self.valid_until is not None and self.valid_from >= self.valid_until:
            raise WordListError(f"pattern {self.pattern!r}: valid_until is not after valid_from")
        if self.match is Match.REGEX:
            try:
                parse(self.pattern)
            except RegexError as error:
                raise WordListError(f"pattern {self.pattern!r}: {error}") from None
            return
        folded = fold(self.pattern)
        if not folded.strip():
            raise WordListError(f"pattern {self.pattern!r} has no visible character")
        if self.match is Match.SPACED:
            self._check_spaced(folded)
        if is_mark(folded[0]):
            raise WordListError(f"pattern {self.pattern!r} begins with a mark that belongs to the letter before")

    def _check_spaced(self, folded: str) -> None:
        if self.level not in {Level.REVIEW, Level.ALLOW}:
            raise WordListError(
                f"pattern {self.pattern!r}: match spaced finds coincidences too: its level is review, or allow"
            )
        letters = [char for char in folded if char.isalpha() and not is_mark(char)]
        least = MIN_SPACED if any(map(is_word, letters)) else 2
        if len(letters) < least:
            raise WordListError(f"pattern {self.pattern!r}: match spaced needs {least} letters, or all words would do")

    def is_valid_at(self, now: float) -> bool:
        """Whether it counts at a Unix time."""
        return (self.valid_from is None or now >= self.valid_from) and (
            self.valid_until is None or now < self.valid_until
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """An entry in force: its name (`list@version#number`), and the level that the policy gives it."""

    id: str
    entry: Entry
    level: Level
