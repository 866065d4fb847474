"""Fields that are known and whose feature is not here: refused by name rather than ignored.

A caller who asks for a JSON schema and gets prose has been misled; an unknown field says nothing and is ignored. Values
that ask for nothing (`functions: []`) pass.
"""

from collections.abc import Callable
from typing import Any, Final, cast

from deepseek_client.types import ChatCompletionRequest, CompletionRequest, SamplingFields
from deepseek_engine.server.errors import unsupported


def _any_entry(value: Any) -> bool:
    return bool(value)


def _other_type(*harmless: str) -> Callable[[Any], bool]:
    def asks(value: Any) -> bool:
        return not (isinstance(value, dict) and cast("dict[str, Any]", value).get("type") in harmless)

    return asks


def _other_than(*harmless: Any) -> Callable[[Any], bool]:
    def asks(value: Any) -> bool:
        return value not in harmless

    return asks


_ASKS_FOR_SOMETHING: Final[dict[str, Callable[[Any], bool]]] = {
    "audio": _any_entry,
    "best_of": _other_than(1),
    "chat_template": _any_entry,
    "function_call": _other_than("none", "auto"),
    "functions": _any_entry,
    "grammar": _any_entry,
    "modalities": _other_than(["text"]),
    "regex": _any_entry,
    "use_beam_search": _any_entry,
}

# What only completions have.
_COMPLETION_ASKS: Final[dict[str, Callable[[Any], bool]]] = {"prompt_logprobs": _other_than(None), "suffix": _any_entry}

# What only a chat has; elsewhere the fields are refused.
_CHAT_ASKS: Final[dict[str, Callable[[Any], bool]]] = {
    "chat_template_kwargs": _any_entry,
    "parallel_tool_calls": _other_than(True),
    "reasoning_effort": _other_than("none"),
    "thinking": _other_type("disabled"),
    "tool_choice": _other_than("none", "auto"),
    "tools": _any_entry,
}


def refuse_unsupported(request: SamplingFields) -> None:
    """Raise for the first field that asks for a feature that is not here.

    Raises:
        ApiError: 400, `param` is the field.
    """
    table = dict(_ASKS_FOR_SOMETHING)
    if not isinstance(request, ChatCompletionRequest):
        table |= _CHAT_ASKS
    if not isinstance(request, CompletionRequest):
        table |= _COMPLETION_ASKS
    for name in request.model_fields_set:
        asks = table.get(name)
        value = getattr(request, name, None)
        if asks is not None and value is not None and asks(value):
            raise unsupported(name, f"{name} is not supported by this server: leave it out")
