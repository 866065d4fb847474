"""What the engine asks of a grammar library; xgrammar is the one there is, behind an optional extra."""

from typing import Any, Protocol

from deepseek_engine.grammar.source import GrammarSource

TokenMask = Any
"""An array of int32, a bit for each token id, the lowest bit first: set where the token may come next."""


class Matcher(Protocol):
    """How far one answer has come in its grammar."""

    def accept(self, token_id: int) -> bool:
        """Move on by a token; False if the grammar does not allow it here."""
        ...

    def next_mask(self, avoid: frozenset[int]) -> TokenMask | None:
        """The tokens that may come next; those to avoid only where nothing else may come. None: there is no token."""
        ...


class Grammar(Protocol):
    """A compiled grammar, shared by any number of answers."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, about."""
        ...

    def matcher(self, stop_token_ids: tuple[int, ...]) -> Matcher:
        """A matcher at the beginning; stop tokens are allowed where the grammar is complete, and nowhere else."""
        ...

    def mask_without(self, token_ids: frozenset[int]) -> TokenMask:
        """Every token but these."""
        ...


class GrammarBackend(Protocol):
    """Compiles grammars for one vocabulary."""

    def compile(self, source: GrammarSource) -> Grammar:
        """Compile; may take long, and runs in whatever thread calls it.

        Raises:
            GrammarError: the source is wrong; the message holds the library's reason.
        """
        ...
