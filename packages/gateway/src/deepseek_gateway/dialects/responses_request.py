"""A body of OpenAI's POST /v1/responses as the engine's chat request.

Nothing is kept between requests: what refers to something that a server would have stored is refused by name.
"""

from dataclasses import dataclass, field
from typing import Any

from deepseek_gateway.dialects.carried_reasoning import brought_back
from deepseek_gateway.dialects.reading import Fields, as_list, as_object, as_text, is_one_of, unsupported
from deepseek_gateway.errors import ApiError

_DROPPED = frozenset(
    {
        "access_programs", "context_management", "include", "input", "instructions", "max_output_tokens",
        "max_tool_calls", "metadata", "n", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "reasoning", "safety_identifier", "service_tier", "store", "stream_options", "text", "tool_choice", "tools",
        "truncation", "top_logprobs",
    }
)  # fmt: skip
_STORED = "nothing is stored here: send the whole conversation in `input` (many clients do with store=false)"
_REFUSED = {
    "previous_response_id": _STORED,
    "conversation": _STORED,
    "prompt": "there are no stored prompts here: send the text in `instructions` and `input`",
    "background": "answers come in their own connection: leave it out, and stream",
    "moderation": "there is no such moderation here: leave it out",
    "top_logprobs": "log-probabilities come with /v1/chat/completions only",
}


def chat_fields(given: Fields) -> Fields:
    """The engine's fields.

    Raises:
        ApiError: 400, naming the field.
    """
    for name, why in _REFUSED.items():
        if given.get(name):
            raise unsupported(name, why)
    if given.get("truncation") is not None and given["truncation"] != "disabled":
        raise unsupported("truncation", "input that is too long is refused, not cut: leave it out")
    if "message.output_text.logprobs" in as_list(given.get("include") or [], "include"):
        raise unsupported("include", "log-probabilities come with /v1/chat/completions only")
    fields = {name: value for name, value in given.items() if name not in _DROPPED and name not in _REFUSED}
    fields["messages"] = [*_instructions(given.get("instructions")), *_messages(given.get("input"))]
    if given.get("max_output_tokens") is not None:
        fields["max_tokens"] = given["max_output_tokens"]
    if given.get("reasoning") is not None:
        effort = as_object(given["reasoning"], "reasoning").get("effort")
        if effort is not None:
            fields["reasoning_effort"] = effort
    return {**fields, **_tools(given), **_text_format(given.get("text"))}


@dataclass(slots=True)
class _Turn:
    """An assistant's turn, gathered from its items."""

    reasoning: list[str] = field(default_factory=list[str])
    texts: list[str] = field(default_factory=list[str])
    calls: list[Fields] = field(default_factory=list[Fields])

    def take(self) -> list[Fields]:
        """The turn as a message, if there is one; the next begins empty."""
        if not (self.reasoning or self.texts or self.calls):
            return []
        message: Fields = {"role": "assistant", "content": "".join(self.texts)}
        if self.reasoning:
            message["reasoning_content"] = "\n".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        self.reasoning, self.texts, self.calls = [], [], []
        return [message]


def _instructions(value: Any) -> list[Fields]:
    return [] if value is None else [{"role": "system", "content": as_text(value, "instructions")}]


def _messages(value: Any) -> list[Fields]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages: list[Fields] = []
    turn = _Turn()
    for index, given in enumerate(as_list(value, "input")):
        path = f"input[{index}]"
        item = as_object(given, path)
        kind = item.get("type", "message")
        if kind == "reasoning":
            turn.reasoning += [text] if (text := _reasoning(item, path)) else []
        elif kind == "function_call":
            turn.calls.append(_call(item, path))
        elif kind == "message" and item.get("role") == "assistant":
            if turn.texts and not turn.calls:
                messages.extend(turn.take())
            turn.texts.append(_content(item.get("content"), f"{path}.content"))
        else:
            messages.extend(turn.take())
            messages.append(_other_item(kind, item, path))
    messages.extend(turn.take())
    if not messages:
        raise ApiError(400, "input is empty: give a text or at least one item", param="input")
    return messages


def _other_item(kind: Any, item: Fields, path: str) -> Fields:
    if kind == "message":
        role = item.get("role")
        if not is_one_of(role, "user", "system", "developer"):
            raise ApiError(
                400, f"{path}.role={role!r} is none of user, assistant, system, developer", param=f"{path}.role"
            )
        content = _content(item.get("content"), f"{path}.content")
        return {"role": "user" if role == "user" else "system", "content": content}
    if kind == "function_call_output":
        call_id = as_text(item.get("call_id"), f"{path}.call_id")
        return {"role": "tool", "tool_call_id": call_id, "content": _content(item.get("output"), f"{path}.output")}
    if kind == "item_reference":
        raise unsupported(path, _STORED)
    raise unsupported(f"{path}.type", f"items of type {str(kind)[:50]!r} are not supported here")


def _content(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    texts: list[str] = []
    for index, given in enumerate(as_list(value, path)):
        at = f"{path}[{index}]"
        part = as_object(given, at)
        kind = part.get("type")
        if is_one_of(kind, "input_text", "output_text", "text"):
            texts.append(as_text(part.get("text"), f"{at}.text"))
        elif kind == "refusal":
            texts.append(as_text(part.get("refusal"), f"{at}.refusal"))
        else:
            raise unsupported(
                at, f"content of type {str(kind)[:50]!r} is not supported: this gateway's models read text"
            )
    return "".join(texts)


def _reasoning(item: Fields, path: str) -> str:
    """A reasoning item's text: its content, else what was carried, else its summary."""
    return _texts(item, "content", path) or brought_back(item.get("encrypted_content")) or _texts(item, "summary", path)


def _texts(item: Fields, name: str, path: str) -> str:
    at = f"{path}.{name}"
    parts = as_list(item.get(name) or [], at)
    return "".join(as_text(as_object(part, at).get("text"), f"{at}.text") for part in parts)


def _call(item: Fields, path: str) -> Fields:
    function = {name: as_text(item.get(name), f"{path}.{name}") for name in ("name", "arguments")}
    return {"id": as_text(item.get("call_id"), f"{path}.call_id"), "type": "function", "function": function}


def _tools(given: Fields) -> Fields:
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(as_list(given.get("tools") or [], "tools"))]
    choice: Any = given.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":  # pyright: ignore[reportUnknownMemberType]
        allowed = as_object(choice, "tool_choice")
        listed = as_list(allowed.get("tools"), "tool_choice.tools")
        names = [as_object(tool, "tool_choice.tools").get("name") for tool in listed]
        tools = [tool for tool in tools if tool["function"]["name"] in names]
        choice = allowed.get("mode", "auto")
    fields: Fields = {"tools": tools} if tools else {}
    if choice is not None:
        fields["tool_choice"] = _tool_choice(choice)
    return fields


def _tool(given: Any, path: str) -> Fields:
    tool = as_object(given, path)
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:50]
        why = "takes free text" if kind == "custom" else "runs on a server that is not here"
        raise unsupported(f"{path}.type", f"{kind!r} {why}: use 'function'")
    function: Fields = {"name": as_text(tool.get("name"), f"{path}.name")}
    for name in ("description", "parameters", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if is_one_of(choice, "auto", "none", "required"):
        return choice
    named = as_object(choice, "tool_choice")
    if named.get("type") != "function":
        message = f"tool_choice={str(choice)[:80]!r} is none of auto, none, required, function, allowed_tools"
        raise ApiError(400, message, param="tool_choice")
    return {"type": "function", "function": {"name": as_text(named.get("name"), "tool_choice.name")}}


def _text_format(value: Any) -> Fields:
    if value is None:
        return {}
    given = as_object(value, "text").get("format")
    if given is None:
        return {}
    form = as_object(given, "text.format")
    kind = form.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if kind == "json_schema":
        described = {name: form[name] for name in ("name", "description", "schema", "strict") if name in form}
        return {"response_format": {"type": "json_schema", "json_schema": described}}
    raise ApiError(
        400, f"text.format.type={kind!r} is none of text, json_object, json_schema", param="text.format.type"
    )
