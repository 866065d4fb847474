"""GrammarSource: what an answer must look like, in the few languages that the compiler reads."""

import hashlib
from typing import Literal

import msgspec

GrammarKind = Literal["ebnf", "structural_tag"]


class GrammarSource(msgspec.Struct, frozen=True):
    """A grammar as text. JSON schemas, patterns and choices have become GBNF by now, within grammar/limits.py.

    Attributes:
        markup: special tokens that answers may be written with, where the grammar has their names; others are never
            allowed.
    """

    kind: GrammarKind
    text: str
    markup: tuple[str, ...] = ()

    @property
    def digest(self) -> bytes:
        """Equal for equal grammars only."""
        return hashlib.sha256("\0".join((self.kind, *self.markup, self.text)).encode("utf-8", "surrogatepass")).digest()


class GrammarUse(msgspec.Struct, frozen=True):
    """How a request uses a grammar.

    Attributes:
        begin_after: token ids that end the reasoning; the grammar begins behind them. Empty: it begins at once.
    """

    source: GrammarSource
    begin_after: tuple[int, ...] = ()
