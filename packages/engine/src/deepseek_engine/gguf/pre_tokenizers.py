"""How each family cuts text into words before byte-pair encoding, by the name that GGUF gives it.

GGUF names the rules (`tokenizer.ggml.pre`) and leaves them to the reader. Those below are the ones in the family's own
`tokenizer.json`, and of `default`, which is no family's, llama.cpp's (src/llama-vocab.cpp). A name that is not among
them is refused: guessing would change token ids.
"""

from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_CASED_LETTERS: Final = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""As DeepSeek LLM lists them; some later additions to Unicode are not among them."""
_CJK: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK_OF_V3: Final = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_WORDS_OF_V3: Final = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION_OF_LLM: Final = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """Rules of one family.

    Attributes:
        patterns: regular expressions, one after the other: what matches becomes a word of its own.
        digits_apart: whether each digit is a word.
        gpt2_words: whether GPT-2's pattern cuts what is left.
        nfc: whether text is normalised first.
        ignore_merges: whether a word that is in the vocabulary is taken whole.
        add_bos: whether text begins with the beginning token where the file does not say.
    """

    patterns: tuple[str, ...] = ()
    digits_apart: bool = False
    gpt2_words: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def install(self, backend: Tokenizer) -> None:
        """Set the tokenizer's normaliser and pre-tokeniser."""
        steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        if self.digits_apart:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2_words))
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
        if self.nfc:
            backend.normalizer = normalizers.NFC()


_GPT2_RULES: Final = PreTokenizer(gpt2_words=True)
_LLAMA3_RULES: Final = PreTokenizer(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_RULES: Final = PreTokenizer(patterns=(_QWEN2,), nfc=True)

PRE_TOKENIZERS: Final[dict[str, PreTokenizer]] = {
    "default": PreTokenizer(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _GPT2_RULES,
    "smollm": PreTokenizer(digits_apart=True, gpt2_words=True),
    "llama-bpe": _LLAMA3_RULES,
    "llama3": _LLAMA3_RULES,
    "llama-v3": _LLAMA3_RULES,
    "qwen2": _QWEN2_RULES,
    "deepseek-r1-qwen": _QWEN2_RULES,
    "deepseek-llm": PreTokenizer(
        patterns=(
            "[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            rf"\s?[{_PUNCTUATION_OF_LLM}]+",
            r"\s+$",
            _CJK,
        ),
        digits_apart=True,
    ),
    "deepseek-coder": PreTokenizer(patterns=("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK), digits_apart=True),
    "deepseek-v3": PreTokenizer(patterns=(r"\p{N}{1,3}", _CJK_OF_V3, _WORDS_OF_V3)),
}
