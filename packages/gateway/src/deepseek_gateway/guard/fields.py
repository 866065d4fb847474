"""Where text stands in requests and answers: one iterator for each way, over all of the engine's dialects.

Requests and answers of other dialects (messages, responses) are translated to chat before they come here, and after
they leave. What is not known to be harmless counts as text, so a new field is looked at before anyone thinks of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

Json = dict[str, Any]

HARMLESS = frozenset({"model", "user", "stream_options", "encoding_format", "reasoning_effort"})
"""Fields of a request that no model reads."""
HARMLESS_IN_MESSAGE = frozenset({"role", "tool_call_id"})
HARMLESS_IN_CALL = frozenset({"id", "type", "index"})
HARMLESS_IN_PART = frozenset({"type", "image_url", "input_audio"})
HARMLESS_IN_DELTA = frozenset({"role", "tool_call_id"})

NAMED = frozenset(
    {
        *("prompt", "suffix", "input", "messages", "content", "reasoning_content", "name", "tool_calls", "function"),
        *("arguments", "tools", "tool_choice", "stop", "response_format", "structured_outputs", "text", "refusal"),
        *("chat_template_kwargs", "thinking"),
    }
)
"""Fields that are called by their names in records; others are `other`, as a caller may have named them."""

SIDECARS = ("logprobs", "token_ids", "prompt_logprobs")
"""What else in a choice tells its text, token by token."""


@dataclass(frozen=True, slots=True)
class Place:
    """One text: it stands in `holder[key]`.

    Attributes:
        choice: which answer it belongs to; 0 in requests.
        field: its name: `content`, `tool_calls.0.arguments`, `messages.2.content`.
        is_json: the text is JSON itself.
        is_whole: it comes in one piece even in a stream.
        is_part: the part of a request's message, one text with the parts before and after it.
        is_key: the text is a key of an object: `holder` has it, and it cannot be changed.
    """

    choice: int
    field: str
    holder: Any
    key: Any
    is_json: bool = False
    is_whole: bool = False
    is_part: bool = False
    is_key: bool = False

    @property
    def text(self) -> str:
        """The text."""
        return self.key if self.is_key else self.holder[self.key]


def request_texts(fields: Json) -> Iterator[Place]:
    """Every text of a request: prompts, messages, tools, schemas, stop strings, and fields that nobody knows."""
    for name, value in fields.items():
        if name == "messages" and isinstance(value, list):
            for number, message in enumerate(cast("list[Any]", value)):
                yield from _message(message, f"messages.{number}")
        elif name not in HARMLESS:
            yield from _strings(fields, name, _label(name))


def has_token_ids(fields: Json) -> bool:
    """Whether a prompt comes as token ids, which no word filter can read."""
    values = [fields.get("prompt"), fields.get("input")]
    lists = [cast("list[Any]", value) for value in values if isinstance(value, list)]
    return any(isinstance(item, int | list) for items in lists for item in items)


def answer_texts(event: Json) -> Iterator[Place]:
    """Every text of a stream's event, or of a whole answer, in the order in which a caller reads it."""
    choices = event.get("choices")
    if not isinstance(choices, list):
        if isinstance(event.get("text"), str):
            yield Place(0, "text", event, "text")
        return
    for choice in cast("list[Any]", choices):
        if isinstance(choice, dict):
            yield from _choice(cast("Json", choice))


def choices_of(event: Json) -> list[Json]:
    """The parts of an event that have a finish_reason: its choices, or itself in the generate dialect."""
    choices = event.get("choices")
    if not isinstance(choices, list):
        return [event]
    return [cast("Json", choice) for choice in cast("list[Any]", choices) if isinstance(choice, dict)]


def index_of(choice: Json) -> int:
    """A choice's number."""
    index = choice.get("index", 0)
    return index if isinstance(index, int) else 0


def delta_for(field: str, text: str) -> Json:
    """A chat delta that adds text to a field."""
    if not field.startswith("tool_calls."):
        return {field: text}
    _, index, name = field.split(".")
    return {"tool_calls": [{"index": int(index), "function": {name: text}}]}


def all_strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            waiting.extend(cast("list[Any]", item))
        elif isinstance(item, dict):
            known = cast("Json", item)
            waiting.extend(known)
            waiting.extend(known.values())


def _choice(choice: Json) -> Iterator[Place]:
    index = index_of(choice)
    if isinstance(choice.get("text"), str):
        yield Place(index, "text", choice, "text")
    for name in ("message", "delta"):
        said = choice.get(name)
        if isinstance(said, dict):
            yield from _said(cast("Json", said), index)


def _said(said: Json, index: int) -> Iterator[Place]:
    """Texts of a message or a delta: reasoning first, then what follows from it."""
    for name in sorted(said, key=lambda name: (not name.startswith("reasoning"), name == "tool_calls")):
        value = said[name]
        if name in HARMLESS_IN_DELTA:
            continue
        if isinstance(value, str):
            yield Place(index, name, said, name)
        elif name == "tool_calls" and isinstance(value, list):
            for number, call in enumerate(cast("list[Any]", value)):
                if isinstance(call, dict):
                    yield from _answer_call(cast("Json", call), index, number)
        elif isinstance(value, list):
            parts = [cast("Json", part) for part in cast("list[Any]", value) if isinstance(part, dict)]
            yield from (Place(index, name, part, "text") for part in parts if isinstance(part.get("text"), str))


def _answer_call(call: Json, index: int, number: int) -> Iterator[Place]:
    function: Any = call.get("function")
    number = call["index"] if isinstance(call.get("index"), int) else number
    if isinstance(function, dict):
        known = cast("Json", function)
        for name in sorted(known, reverse=True):  # the name before the arguments
            if isinstance(known[name], str):
                is_name = name == "name"
                yield Place(index, f"tool_calls.{number}.{name}", known, name, is_json=not is_name, is_whole=is_name)


def _message(message: Any, path: str) -> Iterator[Place]:
    if not isinstance(message, dict):
        return
    known = cast("Json", message)
    for name, value in known.items():
        if name in HARMLESS_IN_MESSAGE:
            continue
        if name == "tool_calls" and isinstance(value, list):
            for number, call in enumerate(cast("list[Any]", value)):
                yield from _request_call(call, f"{path}.tool_calls.{number}")
        elif name == "content" and isinstance(value, list):
            for part in cast("list[Any]", value):
                yield from _part(part, f"{path}.content")
        else:
            yield from _strings(known, name, f"{path}.{_label(name)}")


def _part(part: Any, path: str) -> Iterator[Place]:
    """A part of a message's content: all texts are one, as a template puts them together."""
    if isinstance(part, dict):
        known = cast("Json", part)
        for name in known:
            if name == "text" and isinstance(known[name], str):
                yield Place(0, path, known, name, is_part=True)
            elif name not in HARMLESS_IN_PART:
                yield from _strings(known, name, f"{path}.{_label(name)}")


def _request_call(call: Any, path: str) -> Iterator[Place]:
    if not isinstance(call, dict):
        return
    known = cast("Json", call)
    for name, value in known.items():
        if name == "function" and isinstance(value, dict):
            function = cast("Json", value)
            for part in function:
                if part == "arguments" and isinstance(function[part], str):
                    yield Place(0, f"{path}.arguments", function, part, is_json=True)
                else:
                    yield from _strings(function, part, f"{path}.{_label(part)}")
        elif name not in HARMLESS_IN_CALL:
            yield from _strings(known, name, f"{path}.{_label(name)}")


def _label(name: str) -> str:
    return name if name in NAMED else "other"


def _strings(holder: Any, key: Any, path: str) -> Iterator[Place]:
    """Every string at or below a place, each a text of its own; keys of objects too."""
    waiting: list[tuple[Any, Any, str]] = [(holder, key, path)]
    while waiting:
        holder, key, path = waiting.pop()
        value = holder[key]
        if isinstance(value, str):
            yield Place(0, path, holder, key)
        elif isinstance(value, list):
            items = cast("list[Any]", value)
            waiting.extend((items, number, f"{path}.{number}") for number in reversed(range(len(items))))
        elif isinstance(value, dict):
            known = cast("Json", value)
            for name in known:
                yield Place(0, f"{path}.key", known, name, is_key=True)
                waiting.append((known, name, path if path.endswith(".value") else f"{path}.value"))
