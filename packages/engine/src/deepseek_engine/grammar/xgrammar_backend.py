"""The grammar library xgrammar behind our protocol. Importing this imports xgrammar, and with it transformers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xgrammar

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.source import GrammarSource

Mask = np.ndarray[Any, np.dtype[np.int32]]


class XGrammarBackend:
    """Compiles for one vocabulary.

    Args:
        vocabulary: each token id's bytes; empty for special tokens, which no grammar allows.
        eos_token_ids: of the model.
        num_logits: width of the model's logits, which may be padded past the vocabulary.
        special: name and id of each special token, for grammars that name some as their markup.
    """

    def __init__(
        self,
        vocabulary: Sequence[bytes],
        eos_token_ids: Sequence[int],
        num_logits: int,
        special: Mapping[str, int] | None = None,
    ) -> None:
        # A mask that is too short would let the tokens behind its end pass.
        self._num_tokens = max(num_logits, len(vocabulary))
        self._every_token = _mask_of(self._num_tokens)
        self._vocabulary = list(vocabulary)
        self._eos_token_ids = list(eos_token_ids)
        self._special = special or {}
        self._compilers: dict[tuple[str, ...], xgrammar.GrammarCompiler] = {}
        self._compiler(())

    def compile(self, source: GrammarSource) -> "XGrammar":
        """Compile a source.

        Raises:
            GrammarError: the library refuses it.
        """
        try:
            return XGrammar(self._compile(source), self._every_token)
        except (RuntimeError, ValueError, TypeError) as error:
            raise GrammarError(_reason(error)) from error

    def _compile(self, source: GrammarSource) -> xgrammar.CompiledGrammar:
        compiler = self._compiler(source.markup)
        if source.kind == "structural_tag":
            return compiler.compile_structural_tag(source.text)
        return compiler.compile_grammar(source.text)

    def _compiler(self, markup: tuple[str, ...]) -> xgrammar.GrammarCompiler:
        """One for each set of special tokens that have a text; a model's format has one set, so that two are kept."""
        ids = {name: self._special[name] for name in markup if name in self._special}
        key = tuple(sorted(ids))
        if key not in self._compilers:
            vocabulary = self._vocabulary.copy()
            for name, token_id in ids.items():
                vocabulary[token_id] = name.encode()
            tokens = xgrammar.TokenizerInfo(
                vocabulary,
                xgrammar.VocabType.RAW,
                vocab_size=self._num_tokens,
                stop_token_ids=self._eos_token_ids,
            )
            # One thread: the library may use processors that others compute on. No cache: the store has one.
            self._compilers[key] = xgrammar.GrammarCompiler(tokens, max_threads=1, cache_enabled=False)
        return self._compilers[key]


class XGrammar:
    """A compiled grammar."""

    def __init__(self, compiled: xgrammar.CompiledGrammar, every_token: Mask) -> None:
        self._compiled = compiled
        self._every_token = every_token

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, about."""
        return self._compiled.memory_size_bytes

    def matcher(self, stop_token_ids: tuple[int, ...]) -> "XGrammarMatcher":
        """A matcher at the beginning."""
        matcher = xgrammar.GrammarMatcher(self._compiled, override_stop_tokens=list(stop_token_ids))
        return XGrammarMatcher(matcher, self._every_token)

    def mask_without(self, token_ids: frozenset[int]) -> Mask:
        """Every token but these."""
        mask = self._every_token.copy()
        _clear(mask, token_ids)
        return mask


class XGrammarMatcher:
    """One answer's place in a grammar."""

    def __init__(self, matcher: xgrammar.GrammarMatcher, every_token: Mask) -> None:
        self._matcher = matcher
        self._every_token = every_token
        self._mask: Mask = np.zeros((1, len(every_token)), dtype=np.int32)

    def accept(self, token_id: int) -> bool:
        """Move on by a token; False if the grammar does not allow it here."""
        return self._matcher.accept_token(token_id)

    def next_mask(self, avoid: frozenset[int]) -> Mask | None:
        """The tokens that may come next."""
        if self._matcher.is_terminated():
            return None
        is_restricted = self._matcher.fill_next_token_bitmask(self._mask)
        # The library may leave bits behind the last token set.
        mask = self._mask[0] & self._every_token if is_restricted else self._every_token
        if avoid:
            rest = mask.copy()
            _clear(rest, avoid)
            if rest.any():
                return rest
        return mask if mask.any() else None


def _mask_of(num_tokens: int) -> Mask:
    bits = np.zeros(-(-num_tokens // 32) * 32, dtype=np.uint8)
    bits[:num_tokens] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _clear(mask: Mask, token_ids: frozenset[int]) -> None:
    words = mask.view(np.uint32)
    for token_id in token_ids:
        words[token_id >> 5] &= np.uint32(0xFFFFFFFF ^ (1 << (token_id & 31)))


def _reason(error: Exception) -> str:
    """The library's message without the time and the place in its sources that it begins with."""
    text = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
    _, separator, rest = text.rpartition(".cc:")
    number, colon, message = rest.partition(":")
    return message.strip() if separator and colon and number.isdigit() else text
