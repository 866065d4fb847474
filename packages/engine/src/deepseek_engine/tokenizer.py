"""Text to token ids and back, for a folder with `tokenizer.json`, a GGUF file, or a built-in model."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import tokenizers
from tokenizers import decoders

from deepseek_engine.chat.conversation import ChatEncoder, Conversation
from deepseek_engine.chat.selection import choose_encoder
from deepseek_engine.errors import InvalidRequestError
from deepseek_engine.folder_tokenizer import build_folder_tokenizer, read_model_type
from deepseek_engine.gguf.metadata import read_gguf_metadata
from deepseek_engine.gguf.tokenizer import build_gguf_tokenizer
from deepseek_engine.model_source import resolve_model
from deepseek_engine.numbers_tokenizer import numbers_tokenizer
from deepseek_engine.shapes import is_shape, shape_fields
from deepseek_engine.text_parsers.markup import AnswerFormat
from deepseek_engine.text_parsers.parser import ReasoningStart
from deepseek_engine.text_stream import ByteLevelTextStream, MarkupTextStream, TextStream, WindowTextStream

# Noncharacters (Unicode 23.7): never in exchanged text, and no vocabulary has them.
_MARK_OPEN: Final = "\ufdd0"
_MARK_CLOSE: Final = "\ufdd1"


class _LazyTable(dict[int, bytes]):
    """What each token id adds to a text, worked out when it is first asked for; a look-up is a dict's own."""

    def __init__(self, compute: Callable[[int], bytes]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, token_id: int) -> bytes:
        found = self[token_id] = self._compute(token_id)
        return found


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A conversation's token ids, and where they leave the model."""

    token_ids: list[int]
    reasoning: ReasoningStart


class Tokenizer:
    """A model's tokenizer with what belongs to it: end tokens, beginning token, chat encoder.

    Safe to use from several threads: nothing changes after construction but caches.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Sequence[int] = (),
        bos_token_id: int | None = None,
        chat_encoder: ChatEncoder | None = None,
    ) -> None:
        # A tokenizer.json may carry the truncation and padding of its training.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.eos_token_ids: tuple[int, ...] = tuple(eos_token_ids)
        self.bos_token_id: int | None = bos_token_id
        added = backend.get_added_tokens_decoder()
        self._special = {index: token.content for index, token in added.items() if token.special}
        self.vocab_size: int = max(backend.get_vocab_size(with_added_tokens=True), *(index + 1 for index in added), 0)
        self._is_byte_level = isinstance(backend.decoder, decoders.ByteLevel)
        self._bytes_cache = _LazyTable(self._compute_token_bytes)
        self._text_bytes = _LazyTable(self._compute_text_bytes)
        self._markup_cache: dict[str, dict[int, str]] = {}
        self._plain_backend: tokenizers.Tokenizer | None = None
        self.chat_encoder: ChatEncoder | None = chat_encoder
        self._control = self._find_control_tokens(chat_encoder)
        longest_first = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens written in it become what they name.

        Args:
            text: any text without lone surrogates.
            add_special_tokens: put the beginning token first where the model wants one; a text that already begins
                with it does not get a second one.
        """
        ids = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        doubled = self.bos_token_id is not None and ids[:2] == [self.bos_token_id] * 2
        return ids[1:] if add_special_tokens and doubled else ids

    def encode_chat(self, messages: Sequence[dict[str, Any]], *, continue_final: bool = False) -> list[int]:
        """Token ids of plain turns that ask for the next assistant turn; raises as `encode_conversation` does."""
        return self.encode_conversation(Conversation(messages, continue_final=continue_final)).token_ids

    def encode_conversation(self, conversation: Conversation) -> EncodedChat:
        """Token ids of a conversation that asks for the next assistant turn.

        Control tokens written inside a message or a tool stay text. transformers and vLLM tokenise the rendered text
        as a whole by default, so that a user who types `<|im_end|>` ends their turn and can open a system turn of their
        own; transformers' opt-in `sanitize_control_tokens` does what is done here. Only the encoder opens and closes
        turns.

        Raises:
            InvalidRequestError: the model has no chat encoder, or its encoder refuses the conversation.
        """
        if self.chat_encoder is None:
            raise InvalidRequestError(
                "this model has no chat template: use /v1/completions, or /v1/generate with raw: true, or start the "
                "server with --chat-template",
                param="messages",
            )
        prompt = self.chat_encoder.encode(
            replace(conversation, messages=self._mark(conversation.messages), tools=self._mark(conversation.tools))
        )
        ids: list[int] = []
        # Templates may cut a marked token apart (split, trim), so a lone mark is dropped; it still parts the text.
        for piece in re.split(f"({_MARK_OPEN}[^{_MARK_CLOSE}]*{_MARK_CLOSE})", prompt.text):
            is_plain = piece.startswith(_MARK_OPEN) and piece.endswith(_MARK_CLOSE)
            encode = self._encode_plain if is_plain else self._encode_markup
            for part in re.split(f"[{_MARK_OPEN}{_MARK_CLOSE}]", piece):
                ids += encode(part) if part else []
        return EncodedChat(ids, prompt.reasoning)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; broken UTF-8 becomes U+FFFD, unknown ids add nothing."""
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def text_stream(self, answer_format: AnswerFormat | None = None) -> TextStream:
        """A fresh incremental decoder. Special tokens add no text, but for those that are tags of the given format."""
        if self._is_byte_level:
            stream: TextStream = ByteLevelTextStream(self._text_bytes.__getitem__)
        else:
            stream = WindowTextStream(self._backend, self._special.__contains__)
        markup = {} if answer_format is None else self._markup_tokens(answer_format)
        return MarkupTextStream(stream, markup) if markup else stream

    def vocabulary(self) -> list[bytes]:
        """What each token id adds to a text; empty for special tokens and for ids that are not in use."""
        return [self._text_bytes[token_id] for token_id in range(self.vocab_size)]

    def token_id(self, token: str) -> int | None:
        """The id of the one token that is written so, as tags and control tokens are; None if there is none."""
        return self._backend.token_to_id(token)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Name and id of each special token."""
        return {name: token_id for token_id, name in self._special.items()}

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token by itself: what it adds to a text, or the name of a special token."""
        return self._bytes_cache[token_id]

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself; bytes that are no character alone become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _compute_text_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._special else self.token_bytes(token_id)

    def _compute_token_bytes(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special:
            return (token or "").encode()
        if self._is_byte_level:
            mapped = [_BYTE_OF_CHARACTER.get(character) for character in token]
            # An added token is written as itself, not in byte-level letters; so decides tokenizers' decoder too.
            return token.encode() if None in mapped else bytes(cast("list[int]", mapped))
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()

    def _find_control_tokens(self, encoder: ChatEncoder | None) -> frozenset[str]:
        """Tokens that must mean something only where the encoder writes them.

        Those marked special, and added ones that the encoder has in its markup: DeepSeek's `<｜User｜>` and `<think>`
        are added tokens that are not special. Other added tokens are text (runs of spaces, letters with an accent).
        """
        added = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        literals = "" if encoder is None else "\0".join((encoder.literals, *encoder.format.tags))
        return frozenset({token for token in added if token and token in literals} | set(self._special.values()))

    def _markup_tokens(self, answer_format: AnswerFormat) -> dict[int, str]:
        cached = self._markup_cache.get(answer_format.name)
        if cached is None:
            tags = "\0".join(answer_format.tags)
            cached = {index: token for index, token in self._special.items() if token and token in tags}
            self._markup_cache[answer_format.name] = cached
        return cached

    def _mark(self, value: Any) -> Any:
        """The value with the control tokens marked in all of its strings."""
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, dict):
            return {self._mark(key): self._mark(item) for key, item in cast("dict[Any, Any]", value).items()}
        if isinstance(value, list | tuple):
            return [self._mark(item) for item in cast("Sequence[Any]", value)]
        return value

    def _mark_text(self, text: str) -> str:
        if self._control_pattern.search(text) is None and _MARK_OPEN not in text and _MARK_CLOSE not in text:
            return text
        text = text.replace(_MARK_OPEN, "").replace(_MARK_CLOSE, "")
        return self._control_pattern.sub(lambda match: f"{_MARK_OPEN}{match[0]}{_MARK_CLOSE}", text)

    def _encode_markup(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _encode_plain(self, text: str) -> list[int]:
        if self._plain_backend is None:
            # The setting belongs to the tokenizer, not to the call, and other threads encode at the same time.
            settings = json.loads(self._backend.to_str())
            for token in settings["added_tokens"]:
                token["special"] = token["content"] in self._control
            plain = tokenizers.Tokenizer.from_str(json.dumps(settings))
            plain.encode_special_tokens = True
            self._plain_backend = plain
        return self._plain_backend.encode(text, add_special_tokens=False).ids


def load_tokenizer(model: str, *, chat_template: str | None = None, chat_format: str = "auto") -> Tokenizer:
    """The tokenizer of whatever an engine can load: a folder, a `.gguf` file, a built-in name, a hub id or a shape.

    Args:
        model: which.
        chat_template: text of a template to use in place of the checkpoint's.
        chat_format: a name of `CHAT_FORMATS`; `auto` is what the checkpoint says.

    Raises:
        ModelLoadError: there is none, or it is broken or of a kind not supported.
    """
    if is_shape(model):
        return Tokenizer(numbers_tokenizer(shape_fields(model)["vocab_size"]))
    path = resolve_model(model)
    if path.is_dir():
        parts, model_type = build_folder_tokenizer(path), read_model_type(path)
    else:
        parts, model_type = build_gguf_tokenizer(read_gguf_metadata(path)), None
    encoder = choose_encoder(
        chat_template or parts.chat_template,
        model_type=model_type,
        chat_format=chat_format,
        bos_token=_content(parts.backend, parts.bos_token_id),
        eos_token=_content(parts.backend, next(iter(parts.eos_token_ids), None)),
    )
    return Tokenizer(
        parts.backend, eos_token_ids=parts.eos_token_ids, bos_token_id=parts.bos_token_id, chat_encoder=encoder
    )


def _content(backend: tokenizers.Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else backend.id_to_token(token_id) or ""


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(0x100 + offset): byte for offset, byte in enumerate(others)}


_BYTE_OF_CHARACTER: Final = _byte_of_character()
