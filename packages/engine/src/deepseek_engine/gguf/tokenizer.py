"""A `tokenizers.Tokenizer` built from the metadata of a GGUF file.

GGUF names the pre-tokeniser (`tokenizer.ggml.pre`) and leaves its rules to the reader. Those below are the published
`tokenizer.json` rules of each family; a name that is not among them is refused, as guessing would change token ids.
"""

from dataclasses import dataclass
from typing import Final, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.metadata import GGUFValue

_LLAMA3_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN: Final = _LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE_KINDS: Final = ("default", "gpt-2", "llama-bpe", "qwen2", "smollm")
_CONTROL: Final = 3
_USER_DEFINED: Final = 4


@dataclass(frozen=True, slots=True)
class GGUFTokenizer:
    """What a GGUF file says about text: the tokenizer and the ids and template that go with it."""

    backend: Tokenizer
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    chat_template: str | None


def build_gguf_tokenizer(metadata: dict[str, GGUFValue]) -> GGUFTokenizer:
    """Build the tokenizer.

    Raises:
        ModelLoadError: the metadata holds none, or one of a kind whose rules are not known here.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _PRE_KINDS:
        raise ModelLoadError(
            f"the GGUF tokenizer is of kind model={kind!r}, pre={pre!r}; supported are model='gpt2' with "
            f"pre={', '.join(_PRE_KINDS)}. Use the model's folder with tokenizer.json instead"
        )
    tokens = cast("list[str]", _required_list(metadata, "tokenizer.ggml.tokens"))
    merges = cast("list[str]", _required_list(metadata, "tokenizer.ggml.merges"))
    backend = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[_split_merge(merge) for merge in merges],
            ignore_merges=pre == "llama-bpe",
        )
    )
    _set_pre_tokenizer(backend, pre)
    backend.decoder = decoders.ByteLevel()
    _add_special_tokens(backend, tokens, metadata.get("tokenizer.ggml.token_type"))
    bos = _token_id(metadata, "bos", len(tokens))
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]}:0 $A:0", special_tokens=[(tokens[bos], bos)]
        )
    ends = (_token_id(metadata, name, len(tokens)) for name in ("eos", "eot", "eom"))
    template = metadata.get("tokenizer.chat_template")
    return GGUFTokenizer(
        backend=backend,
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        bos_token_id=bos,
        chat_template=template if isinstance(template, str) else None,
    )


def _set_pre_tokenizer(backend: Tokenizer, pre: str) -> None:
    if pre in ("llama-bpe", "qwen2"):
        pattern = _LLAMA3_PATTERN if pre == "llama-bpe" else _QWEN2_PATTERN
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        if pre == "qwen2":
            backend.normalizer = normalizers.NFC()
        return
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":  # every digit is a token of its own
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        backend.pre_tokenizer = byte_level


def _add_special_tokens(backend: Tokenizer, tokens: list[str], types: GGUFValue | None) -> None:
    if not isinstance(types, list):
        return
    pairs = list(zip(tokens, types, strict=False))
    control = [AddedToken(token, special=True, normalized=False) for token, kind in pairs if kind == _CONTROL]
    user = [AddedToken(token, special=False, normalized=False) for token, kind in pairs if kind == _USER_DEFINED]
    backend.add_special_tokens(control)
    backend.add_tokens(user)


def _split_merge(merge: str) -> tuple[str, str]:
    # Words of a byte-level vocabulary hold no space, as the byte 0x20 is written as another character.
    left, _, right = merge.partition(" ")
    return left, right


def _required_list(metadata: dict[str, GGUFValue], key: str) -> list[GGUFValue]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelLoadError(f"the GGUF file has no list of strings at {key}: it carries no usable tokenizer")
    return value


def _token_id(metadata: dict[str, GGUFValue], name: str, num_tokens: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) and 0 <= value < num_tokens else None
