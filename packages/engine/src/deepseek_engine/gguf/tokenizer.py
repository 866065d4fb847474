"""A `tokenizers.Tokenizer` built from the metadata of a GGUF file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.metadata import GGUFValue
from deepseek_engine.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from deepseek_engine.gguf.sentencepiece import build_sentencepiece

_NORMAL: Final = 1
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_END_NAMES: Final = ("eos", "eot", "eom")
_MAX_TEXT_IN_MESSAGE: Final = 80
_PREFIX: Final = "tokenizer.ggml."

Metadata = Mapping[str, GGUFValue]


@dataclass(frozen=True, slots=True)
class GGUFTokenizer:
    """What a GGUF file says about text: the tokenizer and the ids and template that go with it."""

    backend: Tokenizer
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    chat_template: str | None


def build_gguf_tokenizer(metadata: Metadata) -> GGUFTokenizer:
    """Build the tokenizer.

    Raises:
        ModelLoadError: the metadata holds none, one of a kind whose rules are not known here, or a broken one.
    """
    if metadata.get("split.no"):
        raise ModelLoadError("this GGUF file is a later part of a model: give the first, which holds its tokenizer")
    kind = metadata.get(f"{_PREFIX}model")
    if kind not in ("gpt2", "llama"):
        raise ModelLoadError(
            f"the GGUF tokenizer has {_PREFIX}model={_shown(kind)}; supported are 'gpt2' and 'llama'. Use the model's "
            "folder with tokenizer.json instead"
        )
    rules = _pre_tokenizer(metadata) if kind == "gpt2" else None
    tokens = _tokens(metadata)
    types = cast("list[int]", _list(metadata, "token_type", int, len(tokens), _NORMAL))
    try:
        backend = _sentencepiece(metadata, tokens, types) if rules is None else _byte_level(metadata, tokens, rules)
        _add_special_tokens(backend, tokens, types)
    except ModelLoadError:
        raise
    except Exception as error:  # the binding raises the bare class
        raise ModelLoadError(f"the GGUF tokenizer is broken: {error}") from error
    add_bos = rules is None or rules.add_bos
    bos, eos = _token_id(metadata, "bos", len(tokens)), _token_id(metadata, "eos", len(tokens))
    _set_ends(
        backend,
        None if bos is None or not _flag(metadata, "add_bos_token", default=add_bos) else (tokens[bos], bos),
        None if eos is None or not _flag(metadata, "add_eos_token", default=False) else (tokens[eos], eos),
    )
    ends = (_token_id(metadata, name, len(tokens)) for name in _END_NAMES)
    template = metadata.get("tokenizer.chat_template")
    return GGUFTokenizer(
        backend=backend,
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        bos_token_id=bos,
        chat_template=template if isinstance(template, str) else None,
    )


def _pre_tokenizer(metadata: Metadata) -> PreTokenizer:
    pre = metadata.get(f"{_PREFIX}pre", "default")
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise ModelLoadError(
            f"the GGUF tokenizer has {_PREFIX}pre={_shown(pre)}, whose rules are not known here; known are "
            f"{', '.join(PRE_TOKENIZERS)}. Use the model's folder with tokenizer.json instead"
        )
    return PRE_TOKENIZERS[pre]


def _byte_level(metadata: Metadata, tokens: Sequence[str], rules: PreTokenizer) -> Tokenizer:
    """GPT-2's kind, of bytes that merges join."""
    merges = cast("list[str]", _list(metadata, "merges", str))
    backend = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[_split_merge(merge) for merge in merges],
            ignore_merges=rules.ignore_merges,
        )
    )
    rules.install(backend)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    scores = cast("list[float]", _list(metadata, "scores", float, len(tokens)))
    if not all(math.isfinite(score) for score in scores):
        raise ModelLoadError(f"{_PREFIX}scores holds a value that is not a number")
    prefix = _flag(metadata, "add_space_prefix", default=True)
    return build_sentencepiece(tokens, scores, types, add_space_prefix=prefix)


def _add_special_tokens(backend: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    pairs = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in pairs if kind == _CONTROL])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t, kind in pairs if kind == _USER_DEFINED])


def _set_ends(backend: Tokenizer, bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> None:
    """Put the beginning token before a text and the end token behind it, where the file asks for them."""
    if bos is None and eos is None:
        return
    pieces = [token for token in (bos and bos[0], "$A", eos and eos[0]) if token is not None]
    backend.post_processor = processors.TemplateProcessing(
        single=[f"{piece}:0" for piece in pieces], special_tokens=[each for each in (bos, eos) if each is not None]
    )


def _tokens(metadata: Metadata) -> list[str]:
    """The words by id; an empty one gets the name that llama.cpp gives it."""
    words = cast("list[str]", _list(metadata, "tokens", str))
    tokens = [word or f"[EMPTY_{index}]" for index, word in enumerate(words)]
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))
        raise ModelLoadError(f"{_PREFIX}tokens has {_shown(twice)} twice")
    return tokens


def _split_merge(merge: str) -> tuple[str, str]:
    # Words of a byte-level vocabulary hold no space, as the byte 0x20 is written as another character.
    left, _, right = merge.partition(" ")
    return left, right


def _list(metadata: Metadata, name: str, kind: type, length: int | None = None, default: Any = None) -> list[GGUFValue]:
    """A list of one type, of the given length where there is one; of `default`, where that is given and no list is."""
    value = metadata.get(_PREFIX + name)
    if value is None and default is not None and length is not None:
        return [default] * length
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise ModelLoadError(
            f"the GGUF file has no list of {kind.__name__} at {_PREFIX}{name}: it carries no usable tokenizer"
        )
    if length is not None and len(value) != length:
        raise ModelLoadError(f"{_PREFIX}{name} has {len(value)} entries for {length} tokens")
    return value


def _token_id(metadata: Metadata, name: str, num_tokens: int) -> int | None:
    value = metadata.get(f"{_PREFIX}{name}_token_id")
    return value if isinstance(value, int) and 0 <= value < num_tokens else None


def _flag(metadata: Metadata, name: str, *, default: bool) -> bool:
    return bool(metadata.get(_PREFIX + name, default))


def _shown(value: GGUFValue | None) -> str:
    """A value from the file for a message; it may be of any length."""
    text = repr(value) if not isinstance(value, list) else f"(a list of {len(value)} values)"
    return text if len(text) <= _MAX_TEXT_IN_MESSAGE else f"{text[:_MAX_TEXT_IN_MESSAGE]}..."
