"""The few fields of a request that the gateway acts on, and the body that the engine gets.

The body is parsed once and encoded again: the engine reads the very fields that were checked, whatever a caller does
with double keys. Everything else is the engine's to check.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple, Self, cast

import orjson

from deepseek_gateway.errors import ApiError
from deepseek_gateway.relay.usage_tap import UsageWish

BYTES_PER_TOKEN = 3
"""Below what tokenizers reach on plain text (English 4 to 5, Chinese 3 to 5): an estimate rather holds too much."""

_DIGITS = b"0123456789"
"""Some tokenizers make a token of each."""

_BYTES_AROUND = 3
"""What a string costs beside its text: a role, a separator."""

_PROMPT_FIELDS = ("prompt", "suffix", "messages", "input")

MAX_CHOICES = 128
MAX_MODEL = 256
MAX_ESTIMATE = 2**31

MAX_DEPTH = 100
"""Levels of a body. What is read must be written again for the engine, and there the encoder ends at 254."""


class Dialect(Enum):
    """The three ways to ask for text, and what is relayed beside them; values are the API's paths."""

    GENERATE = "generate"
    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"

    def __init__(self, path: str) -> None:
        self.path = path
        self.generates = path in {"generate", "chat/completions", "completions"}
        """Whether tokens are made."""
        self.is_billed = self.generates or path == "embeddings"
        """Whether the model computes anything."""


class PromptSize(NamedTuple):
    """Tokens of a prompt, before an engine counts them: `estimate`, and `most`, which tokenizers of bytes keep to."""

    estimate: int
    most: int

    @property
    def is_exact(self) -> bool:
        """Whether it was counted."""
        return self.estimate == self.most


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a body asks for. `max_tokens` is None when it gives none; `choices` is how many answers it wants."""

    dialect: Dialect
    fields: dict[str, Any]
    model: str | None
    stream: bool
    wish: UsageWish
    max_tokens: int | None
    choices: int
    prompt: PromptSize

    def counted(self, prompt_tokens: int) -> Self:
        """The same request, with its prompt counted."""
        return replace(self, prompt=PromptSize(prompt_tokens, prompt_tokens))

    @property
    def is_continuation(self) -> bool:
        """Whether the answer continues the last message (`prefix`)."""
        messages: Any = self.fields.get("messages")
        last: Any = cast("list[Any]", messages)[-1] if isinstance(messages, list) and messages else None
        return isinstance(last, dict) and cast("dict[str, Any]", last).get("prefix") is True

    def encode(self, model: str | None, max_tokens: int | None, *, continuous_usage: bool) -> bytes:
        """The engine's body: with a model if one is known, a limit if one was set, and usage asked for on streams."""
        fields = dict(self.fields)
        if model is not None:
            fields["model"] = model
        if max_tokens is not None:
            fields["max_tokens"] = max_tokens
        if self.stream:
            given: dict[str, Any] = fields.get("stream_options") or {}
            options = {**given, "include_usage": True}
            if continuous_usage:
                options["continuous_usage_stats"] = True
            fields["stream_options"] = options
        return orjson.dumps(fields)


def parse_request(dialect: Dialect, body: bytes) -> GenerationRequest:
    """Read a body.

    Raises:
        ApiError: 400, it is not a JSON object, or a field that the gateway acts on has the wrong type.
    """
    return read_request(dialect, parse_body(body))


def parse_body(body: bytes) -> dict[str, Any]:
    """A body's fields.

    Raises:
        ApiError: 400, it is not a JSON object, or is nested too deeply.
    """
    try:
        parsed = orjson.loads(body)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(parsed, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    fields = cast("dict[str, Any]", parsed)
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and is_deeper(fields, MAX_DEPTH):
        raise ApiError(400, f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")
    return fields


def is_deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value is nested more than so many levels deep."""
    level: list[Any] = [value]
    for _ in range(levels):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())  # pyright: ignore[reportUnknownArgumentType]  JSON
            elif isinstance(each, list):
                inner.extend(each)  # pyright: ignore[reportUnknownArgumentType]
        level = [each for each in inner if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def read_request(dialect: Dialect, fields: dict[str, Any], wish: UsageWish | None = None) -> GenerationRequest:
    """Read a body's fields. The usage that the caller wants is read from `stream_options` unless it is given.

    Raises:
        ApiError: 400, a field that the gateway acts on has the wrong type.
    """
    model = _optional(fields, "model", str)
    if model is not None and len(model) > MAX_MODEL:
        raise ApiError(400, f"model={model[:40]!r}… has {len(model)} characters, over {MAX_MODEL}", param="model")
    if model is not None and not model.isprintable():  # it goes into tables, and PostgreSQL's texts hold no NUL
        raise ApiError(400, f"model={model[:80]!r} has invisible characters", param="model")
    options = cast("dict[str, Any]", _optional(fields, "stream_options", dict) or {})
    wish = wish or UsageWish(
        trailing=options.get("include_usage") is True,
        continuous=options.get("continuous_usage_stats") is True,
        in_finish=dialect is Dialect.GENERATE,
    )
    if dialect.generates:
        max_tokens = _positive(fields.get("max_tokens")) or _positive(fields.get("max_completion_tokens"))
    else:
        max_tokens = 1  # nothing to hold for an answer
    prompts = _prompt_count(dialect, fields)
    return GenerationRequest(
        dialect=dialect,
        fields=fields,
        model=model,
        stream=_optional(fields, "stream", bool) is True,
        wish=wish,
        max_tokens=max_tokens,
        choices=min(prompts * (_positive(fields.get("n")) or 1), MAX_CHOICES),
        prompt=size_of_prompt([fields[name] for name in _PROMPT_FIELDS if name in fields], fields.get("tools")),
    )


def size_of_prompt(value: Any, tools: Any = None) -> PromptSize:
    """Tokens of the text in a JSON value, from its bytes; a number in a list is a token id. Tools are shown as JSON."""
    size, digits, ids = 0, 0, 0
    waiting: list[Any] = [value]
    if tools:
        waiting.append(orjson.dumps(tools).decode())
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            data = item.encode()
            size += len(data) + _BYTES_AROUND
            digits += len(data) - len(data.translate(None, _DIGITS))
        elif isinstance(item, list):
            waiting.extend(item)  # pyright: ignore[reportUnknownArgumentType]  JSON
        elif isinstance(item, dict):
            waiting.extend(item.values())  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(item, int):
            ids += 1
    estimate = (size - digits) // BYTES_PER_TOKEN + digits + ids + 1
    most = estimate if size == 0 else size + ids + 1
    return PromptSize(min(estimate, MAX_ESTIMATE), min(most, MAX_ESTIMATE))


def _prompt_count(dialect: Dialect, fields: dict[str, Any]) -> int:
    prompt = fields.get("prompt")
    if dialect is Dialect.COMPLETIONS and isinstance(prompt, list) and prompt:
        prompts = cast("list[Any]", prompt)
        return 1 if isinstance(prompts[0], int) else len(prompts)
    return 1


def _positive(value: object) -> int | None:
    # bool is an int; and what the engine will refuse must not become arithmetic here.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_ESTIMATE else None


def _optional(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if value is None or isinstance(value, kind):
        return value
    expected = {str: "a string", bool: "true or false", dict: "an object"}[kind]
    raise ApiError(400, f"{name}={str(value)[:80]!r} is not {expected}", param=name)
