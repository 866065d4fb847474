"""Text to token ids and back, for a folder with `tokenizer.json`, a GGUF file, or a built-in model."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import tokenizers
from tokenizers import decoders

from deepseek_engine.chat_template import ChatTemplate
from deepseek_engine.errors import InvalidRequestError, ModelLoadError
from deepseek_engine.gguf_metadata import read_gguf_metadata
from deepseek_engine.gguf_tokenizer import build_gguf_tokenizer
from deepseek_engine.model_source import resolve_model
from deepseek_engine.text_stream import ByteLevelTextStream, TextStream, WindowTextStream

# Noncharacters (Unicode 23.7): never in exchanged text, and no vocabulary has them.
_MARK_OPEN: Final = "\ufdd0"
_MARK_CLOSE: Final = "\ufdd1"


class Tokenizer:
    """A model's tokenizer with what belongs to it: end tokens, beginning token, chat template.

    Safe to use from several threads: nothing changes after construction but caches.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Sequence[int] = (),
        bos_token_id: int | None = None,
        chat_template: str | None = None,
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
        self._bytes_cache: dict[int, bytes] = {}
        self._plain_backend: tokenizers.Tokenizer | None = None
        longest_first = sorted(self._special.values(), key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.chat_template: ChatTemplate | None = None
        if chat_template is not None:
            eos = self.eos_token_ids[0] if self.eos_token_ids else None
            self.chat_template = ChatTemplate(
                chat_template, bos_token=self._content(bos_token_id), eos_token=self._content(eos)
            )

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

    def encode_chat(self, messages: Sequence[dict[str, str]], *, continue_final: bool = False) -> list[int]:
        """Token ids of a conversation that asks for the next assistant turn.

        Special tokens written inside a message stay text. transformers and vLLM tokenise the rendered text as a whole
        by default, so that a user who types `<|im_end|>` ends their turn and can open a system turn of their own;
        transformers' opt-in `sanitize_control_tokens` does what is done here. Only the template opens and closes turns.

        Args:
            messages: `role` and `content` of each turn.
            continue_final: the answer continues the last message.

        Raises:
            InvalidRequestError: the model has no chat template, or its template refuses the messages.
        """
        if self.chat_template is None:
            raise InvalidRequestError(
                "this model has no chat template: use /v1/completions, or /v1/generate with raw: true", param="messages"
            )
        marked = [{name: self._mark(value) for name, value in message.items()} for message in messages]
        prompt = self.chat_template.render(marked, continue_final=continue_final)
        ids: list[int] = []
        # Templates may cut a marked token apart (split, trim), so a lone mark is dropped; it still parts the text.
        for piece in re.split(f"({_MARK_OPEN}[^{_MARK_CLOSE}]*{_MARK_CLOSE})", prompt):
            is_plain = piece.startswith(_MARK_OPEN) and piece.endswith(_MARK_CLOSE)
            encode = self._encode_plain if is_plain else self._encode_markup
            for part in re.split(f"[{_MARK_OPEN}{_MARK_CLOSE}]", piece):
                ids += encode(part) if part else []
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; broken UTF-8 becomes U+FFFD, unknown ids add nothing."""
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def text_stream(self) -> TextStream:
        """A fresh incremental decoder."""
        if self._is_byte_level:
            return ByteLevelTextStream(self._text_bytes)
        return WindowTextStream(self._backend, self._special.__contains__)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token by itself: what it adds to a text, or the name of a special token."""
        cached = self._bytes_cache.get(token_id)
        if cached is None:
            cached = self._bytes_cache[token_id] = self._compute_token_bytes(token_id)
        return cached

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself; bytes that are no character alone become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _text_bytes(self, token_id: int) -> bytes:
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

    def _content(self, token_id: int | None) -> str:
        return "" if token_id is None else self._backend.id_to_token(token_id) or ""

    def _mark(self, text: str) -> str:
        if self._special_pattern.search(text) is None and _MARK_OPEN not in text and _MARK_CLOSE not in text:
            return text
        text = text.replace(_MARK_OPEN, "").replace(_MARK_CLOSE, "")
        return self._special_pattern.sub(lambda match: f"{_MARK_OPEN}{match[0]}{_MARK_CLOSE}", text)

    def _encode_markup(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _encode_plain(self, text: str) -> list[int]:
        if self._plain_backend is None:
            # The setting belongs to the tokenizer, not to the call, and other threads encode at the same time.
            plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
            plain.encode_special_tokens = True
            self._plain_backend = plain
        return self._plain_backend.encode(text, add_special_tokens=False).ids


def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a checkpoint folder, a `.gguf` file or a built-in name.

    Raises:
        ModelLoadError: there is none, or it is broken or of a kind not supported.
    """
    path = resolve_model(model)
    if path.is_dir():
        return _from_folder(path)
    parts = build_gguf_tokenizer(read_gguf_metadata(path))
    return Tokenizer(
        parts.backend,
        eos_token_ids=parts.eos_token_ids,
        bos_token_id=parts.bos_token_id,
        chat_template=parts.chat_template,
    )


def _from_folder(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelLoadError(
            f"{folder} has no tokenizer.json: convert the tokenizer with transformers and save it there"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises the bare class
        raise ModelLoadError(f"{path} is not a usable tokenizer: {error}") from error
    settings = _read_json(folder / "tokenizer_config.json")
    bos = _token_content(settings.get("bos_token"))
    return Tokenizer(
        backend,
        eos_token_ids=_eos_token_ids(folder, backend, settings),
        bos_token_id=None if bos is None else backend.token_to_id(bos),
        chat_template=_chat_template(folder, settings),
    )


def _eos_token_ids(folder: Path, backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> tuple[int, ...]:
    """Every end token that a file of the checkpoint names: chat models often end turns with one of their own."""
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        values = cast("list[Any]", value) if isinstance(value, list) else [value]
        ids += [item for item in values if isinstance(item, int)]
    eos = _token_content(settings.get("eos_token"))
    index = None if eos is None else backend.token_to_id(eos)
    return tuple(dict.fromkeys(ids if index is None else [*ids, index]))


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in cast("list[dict[str, Any]]", template)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_content(token: Any) -> str | None:
    """Token settings are a string, or an object with the string in `content`."""
    if isinstance(token, dict):
        token = cast("dict[str, Any]", token).get("content")
    return token if isinstance(token, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON: {error}") from error
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(0x100 + offset): byte for offset, byte in enumerate(others)}


_BYTE_OF_CHARACTER: Final = _byte_of_character()
