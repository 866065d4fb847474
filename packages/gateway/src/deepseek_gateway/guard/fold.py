"""Fold text, so that one pattern finds all its spellings: width, case, accents' forms, script variants, hidden marks.

Each character folds alone, whatever stands beside it. So folding a text in pieces is folding it whole, and one
translate table, built offline (packages/gateway/tools/build_folding.py), does all of it at once:

    NFKD · case folding · traditional to simplified Chinese · whitespace to spaces · characters that show nothing, or
    only ornament letters, to nothing

`skeleton` goes one step further and turns letters that look like a-z into these, each into one: positions in both forms
are the same. It finds candidates; `is_disguised` says which of them are more than a coincidence of two alphabets.
"""

import functools
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from importlib.resources import files
from itertools import accumulate
from typing import cast

import orjson

Table = dict[int, int | str]

_HANGUL = range(0xAC00, 0xD7A4)
_SURROGATES = range(0xD800, 0xE000)
_TAGS = range(0xE0000, 0xE1000)
_COMMON = (range(0x80, 0x600), range(0x3000, 0x3100), range(0x4E00, 0xA000))
"""Alphabets and Han: in the table even where nothing changes, as str.translate pays for each miss with an exception."""

_ASCII_CONTROLS = bytes(point for point in (*range(32), 127) if not chr(point).isspace())
_ASCII_FOLDED = bytes(ord(" ") if chr(point).isspace() else ord(chr(point).lower()) for point in range(128)).ljust(256)

_LATIN = re.compile("[a-z]")
_LOOKALIKE_SCRIPTS = re.compile("[\u0370-\u058f\u13a0-\u13ff\u2c80-\u2cff\ua4d0-\ua69f]")


def fold(text: str) -> str:
    """The form in which patterns and text are the same word."""
    return _fold_ascii(text) if text.isascii() else text.translate(_tables()[0])


def skeleton(text: str) -> str:
    """`fold`, and look-alikes of Latin letters as these letters. As long as `fold` of the same text."""
    return _fold_ascii(text) if text.isascii() else text.translate(_tables()[1])


def has_lookalikes(folded: str) -> bool:
    """Whether folded text has letters of the alphabets that look like Latin."""
    return not folded.isascii() and _LOOKALIKE_SCRIPTS.search(folded) is not None


def is_disguised(folded: str, pattern: str) -> bool:
    """Whether text that has a pattern's skeleton is that pattern in disguise: whole words of another alphabet are not.

    Each word that differs from the pattern must mix Latin letters with their look-alikes. Both are folded, of one
    length.
    """
    for start, end in _words(folded):
        word = folded[start:end]
        if word != pattern[start:end] and not (_LATIN.search(word) and _LOOKALIKE_SCRIPTS.search(word)):
            return False
    return True


class OffsetMap:
    """Where each folded character came from. Costly: made for texts that have a hit."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends = list(accumulate(len(fold(char)) for char in text))

    def start(self, folded_at: int) -> int:
        """The position in the text of the character that a folded one came from."""
        return bisect_right(self._ends, folded_at)

    def end(self, folded_end: int) -> int:
        """Where the character of the last folded one ends, with all after it that shows nothing."""
        position = self.start(folded_end - 1)
        return bisect_right(self._ends, self._ends[position]) if position < len(self._ends) else len(self._ends)


def is_mark(folded: str) -> bool:
    """Whether a folded character belongs to the one before: an accent, a vowel sign, the rest of a Hangul syllable."""
    return not folded.isascii() and ("\u1160" <= folded <= "\u11ff" or unicodedata.category(folded)[0] == "M")


def is_word(folded: str) -> bool:
    """Whether a folded character continues a word. Chinese and Japanese, written without spaces, do not."""
    if folded.isascii():
        return folded.isalnum() or folded == "_"
    return not ("\u2e80" <= folded <= "\u9fff" or folded >= "\U00020000") and (folded.isalnum() or is_mark(folded))


def _words(folded: str) -> Iterator[tuple[int, int]]:
    start = None
    for position, char in enumerate(folded):
        if char.isalpha() and is_word(char):
            start = position if start is None else start
        elif start is not None:
            yield start, position
            start = None
    if start is not None:
        yield start, len(folded)


def _fold_ascii(text: str) -> str:
    return text.encode("ascii").translate(_ASCII_FOLDED, _ASCII_CONTROLS).decode("ascii")


@functools.cache
def _tables() -> tuple[Table, Table]:
    """The tables of `fold` and `skeleton`, read once, when the first list is used."""
    data = cast("dict[str, dict[str, str]]", orjson.loads(_data()))
    table: Table = {point: point for points in _COMMON for point in points}
    table.update((ord(char), folded) for char, folded in data["fold"].items())
    table.update((point, "\ufffd") for point in _SURROGATES)  # half a character: matchers take none
    table.update((point, "") for point in _TAGS)
    table.update((point, unicodedata.normalize("NFD", chr(point))) for point in _HANGUL)
    likes = {ord(char): letter for char, letter in data["skeleton"].items()}
    looks: Table = {}
    for point, folded in table.items():
        looks[point] = likes.get(point, point) if isinstance(folded, int) else folded.translate(likes)
    return table, {**likes, **looks}


def _data() -> bytes:
    return files("deepseek_gateway.guard").joinpath("data/folding.json").read_bytes()
