"""Token ids to text, as they come: the pieces of a stream joined are the text of all its tokens.

A byte-level vocabulary (GPT-2's, Llama 3's, Qwen's, DeepSeek's) maps each token to bytes, so a UTF-8 decoder that keeps
its state gives the text with exactly the incomplete character held back, in constant time a token. Others go through
`tokenizers.DecodeStream`, which decodes a growing window until the text stops ending in U+FFFD; a model that keeps
writing broken bytes makes that quadratic (sglang#34852), so its window is bounded here.
"""

import codecs
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import tokenizers
from tokenizers.decoders import DecodeStream

MAX_HELD_TOKENS: Final = 32


class TextStream(Protocol):
    """The text of one answer in the making. Special tokens add nothing; the prompt is never part of it."""

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        ...

    def finish(self) -> str:
        """The replacement characters for what stayed incomplete."""
        ...


class ByteLevelTextStream:
    """For byte-level vocabularies.

    Args:
        token_bytes: a token id to its bytes; empty for special tokens and unknown ids.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._held = b""  # an incomplete character

    def push(self, token_id: int) -> str:
        """The text that this token completes."""
        data = self._token_bytes(token_id)
        if self._held:
            data = self._held + data
        # "replace" puts one U+FFFD for each maximal broken subsequence, as Rust's from_utf8_lossy does.
        text, num_used = codecs.utf_8_decode(data, "replace", False)
        self._held = data[num_used:]
        return text

    def finish(self) -> str:
        """One U+FFFD if a character stayed incomplete."""
        held, self._held = self._held, b""
        return held.decode("utf-8", "replace")


class NoTextStream:
    """For callers who want token ids alone."""

    def push(self, token_id: int) -> str:  # noqa: ARG002 - of the protocol
        """Nothing."""
        return ""

    def finish(self) -> str:
        """Nothing."""
        return ""


class MarkupTextStream:
    """Around another stream: some special tokens are text here, as a parser looks for them.

    Args:
        stream: for all other tokens.
        markup: those tokens' ids and texts.
    """

    def __init__(self, stream: TextStream, markup: Mapping[int, str]) -> None:
        self._stream = stream
        self._markup = markup

    def push(self, token_id: int) -> str:
        """The text that this token completes."""
        text = self._markup.get(token_id)
        return self._stream.push(token_id) if text is None else self._stream.finish() + text

    def finish(self) -> str:
        """What stayed incomplete, as the inner stream gives it."""
        return self._stream.finish()


class WindowTextStream:
    """For every other vocabulary.

    Args:
        backend: the tokenizer.
        is_skipped: whether a token id adds no text. Skipped here and not in the DecodeStream, whose window would grow
            with each token that adds nothing.
    """

    def __init__(self, backend: tokenizers.Tokenizer, is_skipped: Callable[[int], bool]) -> None:
        self._backend = backend
        self._is_skipped = is_skipped
        self._stream = DecodeStream(skip_special_tokens=True)
        self._last: list[int] = []  # tokens of the last text given, which decide how the next ones are joined to it
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes."""
        if self._is_skipped(token_id):
            return ""
        self._held.append(token_id)
        try:
            text = self._stream.step(self._backend, token_id)
        except Exception:
            return self.finish()
        if text is None:
            return self.finish() if len(self._held) >= MAX_HELD_TOKENS else ""
        self._last, self._held = self._held, []
        return text

    def finish(self) -> str:
        """The text of the held tokens as it is, broken characters replaced; the window starts anew."""
        before = self._backend.decode(self._last, skip_special_tokens=True)
        text = self._backend.decode([*self._last, *self._held], skip_special_tokens=True)[len(before) :]
        self._last, self._held = [], []
        self._stream = DecodeStream(skip_special_tokens=True)
        return text
