"""SentencePiece's byte-pair encoding from a GGUF vocabulary, as Llama 2 and Mixtral have it.

Such a vocabulary has a score for each piece and no merges: of all neighbours whose concatenation is a piece, the pair
with the best one is joined first. Written as merges in that order, the tokenizers library does the same.
Source: llama.cpp's SPM tokenizer, and what transformers makes of a tokenizer.model of this kind.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from deepseek_engine.errors import ModelLoadError

SPACE: Final = "▁"
_NORMAL: Final = 1
_UNKNOWN: Final = 2
_MAX_PIECE_LENGTH: Final = 256
"""Longer pieces, which no vocabulary has, would take quadratic time."""


def build_sentencepiece(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, add_space_prefix: bool
) -> Tokenizer:
    """The tokenizer, without special tokens.

    Args:
        tokens: pieces, by id.
        scores: of the pieces, higher is better.
        types: of the pieces; of unknown tokens there is one.
        add_space_prefix: whether text begins as if after a space.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores, types),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if add_space_prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if add_space_prefix else steps)
    if unknown is not None:
        backend.add_special_tokens([AddedToken(unknown, special=True, normalized=False)])
    return backend


def _merges(vocabulary: dict[str, int], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, those of the best piece first. Control tokens are never made of text."""
    pieces = {piece: index for piece, index in vocabulary.items() if types[index] == _NORMAL}
    found: list[tuple[float, int, str, str]] = []
    for piece, index in pieces.items():
        if len(piece) > _MAX_PIECE_LENGTH:
            raise ModelLoadError(f"token {index} of tokenizer.ggml.tokens has {len(piece)} characters: too many")
        found += [(-scores[index], index, left, right) for left, right in _halves(piece, pieces)]
    found.sort(key=lambda each: (each[0], each[1]))
    return [(left, right) for _, _, left, right in found]


def _halves(piece: str, pieces: dict[str, int]) -> Iterator[tuple[str, str]]:
    for at in range(1, len(piece)):
        left, right = piece[:at], piece[at:]
        if left in pieces and right in pieces:
            yield left, right
