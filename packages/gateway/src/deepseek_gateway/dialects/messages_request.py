"""A body of Anthropic's POST /v1/messages as the engine's chat request.

What only Anthropic's cloud has and what changes no answer (caching hints, service tiers) is dropped; what would change
one and is not here (images, server tools) is refused by name. Fields that Anthropic does not have (`seed`, `min_p`)
pass on, so that callers can reach the engine's own.
"""

from typing import Any

import orjson

from deepseek_gateway.dialects.reading import Fields, as_list, as_object, as_text, is_one_of, unsupported
from deepseek_gateway.errors import ApiError

_DROPPED = frozenset(
    {
        "betas", "cache_control", "context_management", "diagnostics", "inference_geo", "metadata", "messages", "n",
        "output_config", "service_tier", "speed", "stop_sequences", "system", "thinking", "tool_choice", "tools",
        "user_profile_id", "workspace_id",
    }
)  # fmt: skip
_REFUSED = {"container": "there are no containers here", "mcp_servers": "there are no MCP connectors here"}
_READ_AS_TEXT = "this gateway's models read text"


def chat_fields(given: Fields, *, needs_max_tokens: bool = True) -> Fields:
    """The engine's fields.

    Raises:
        ApiError: 400, naming the field.
    """
    if needs_max_tokens and given.get("max_tokens") is None:
        raise ApiError(400, "max_tokens is missing: give the most tokens that the answer may have", param="max_tokens")
    for name, why in _REFUSED.items():
        if given.get(name):
            raise unsupported(name, f"{why}: leave it out")
    fields = {name: value for name, value in given.items() if name not in _DROPPED and name not in _REFUSED}
    messages = [*_system(given.get("system"), "system"), *_messages(given.get("messages"))]
    fields["messages"] = messages
    if messages[-1]["role"] == "assistant":
        if "tool_calls" in messages[-1]:
            raise ApiError(400, "messages ends in a tool_use: a tool_result for it must follow", param="messages")
        messages[-1]["prefix"] = True
    if (stop := given.get("stop_sequences")) is not None:
        fields["stop"] = as_list(stop, "stop_sequences")
    if given.get("metadata") is not None:
        user = as_object(given["metadata"], "metadata").get("user_id")
        if user is not None:
            fields["user"] = as_text(user, "metadata.user_id")
    return {**fields, **_tools(given), **_thinking(given.get("thinking")), **_output(given.get("output_config"))}


def hides_thinking(given: Fields) -> bool:
    """Whether the caller wants thinking blocks without their text (`thinking.display`)."""
    return as_object(given.get("thinking") or {}, "thinking").get("display") == "omitted"


def _system(value: Any, path: str) -> list[Fields]:
    if value is None or value == []:
        return []
    return [{"role": "system", "content": _text_of(value, path)}]


def _messages(value: Any) -> list[Fields]:
    given = as_list(value, "messages")
    if not given:
        raise ApiError(400, "messages is empty: give at least one", param="messages")
    messages: list[Fields] = []
    for index, item in enumerate(given):
        path = f"messages[{index}]"
        message = as_object(item, path)
        role = message.get("role")
        if role == "user":
            messages.extend(_user(message.get("content"), f"{path}.content"))
        elif role == "assistant":
            messages.append(_assistant(message.get("content"), f"{path}.content"))
        elif role == "system":
            messages.extend(_system(message.get("content"), f"{path}.content"))
        else:
            raise ApiError(400, f"{path}.role={role!r} is none of user, assistant, system", param=f"{path}.role")
    return messages


def _user(content: Any, path: str) -> list[Fields]:
    """A user's turn: tool results become messages of their own, before the text."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Fields] = []
    texts: list[str] = []
    for block, at in _blocks(content, path):
        if block["type"] == "tool_result":
            results.append(_tool_result(block, at))
        else:
            texts.append(_text_block(block, at))
    if texts or not results:
        results.append({"role": "user", "content": "\n".join(texts)})
    return results


def _tool_result(block: Fields, path: str) -> Fields:
    call_id = as_text(block.get("tool_use_id"), f"{path}.tool_use_id")
    content = block.get("content")
    text = "" if content is None else _text_of(content, f"{path}.content")
    if block.get("is_error") is True and not text.lower().startswith("error"):
        text = f"Error: {text}"  # chat templates have no other place for it
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def _assistant(content: Any, path: str) -> Fields:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    text, thinking, calls = "", "", list[Fields]()
    for block, at in _blocks(content, path):
        kind = block["type"]
        if kind == "thinking":
            thinking += as_text(block.get("thinking"), f"{at}.thinking")
        elif kind == "redacted_thinking":
            continue  # only its maker can read it
        elif kind == "tool_use":
            calls.append(_tool_use(block, at))
        else:
            text += _text_block(block, at)
    message: Fields = {"role": "assistant", "content": text}
    if thinking:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_use(block: Fields, path: str) -> Fields:
    arguments = as_object(block.get("input", {}), f"{path}.input")
    name = as_text(block.get("name"), f"{path}.name")
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    return {"id": as_text(block.get("id"), f"{path}.id"), "type": "function", "function": function}


def _text_of(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text_block(block, at) for block, at in _blocks(content, path))


def _text_block(block: Fields, path: str) -> str:
    kind = block["type"]
    if kind == "text":
        return as_text(block.get("text"), f"{path}.text")
    if kind == "search_result":
        return _text_of(block.get("content"), f"{path}.content")
    if kind == "document":
        source = as_object(block.get("source"), f"{path}.source")
        if source.get("type") == "text":
            return as_text(source.get("data"), f"{path}.source.data")
        if source.get("type") == "content":
            return _text_of(source.get("content"), f"{path}.source.content")
    raise unsupported(path, f"a block of type {kind[:50]!r} is not supported here: {_READ_AS_TEXT}")


def _blocks(content: Any, path: str) -> list[tuple[Fields, str]]:
    blocks: list[tuple[Fields, str]] = []
    for index, item in enumerate(as_list(content, path)):
        at = f"{path}[{index}]"
        block = as_object(item, at)
        as_text(block.get("type"), f"{at}.type")
        blocks.append((block, at))
    return blocks


def _tools(given: Fields) -> Fields:
    fields: Fields = {}
    if given.get("tools"):
        tools = enumerate(as_list(given["tools"], "tools"))
        fields["tools"] = [_tool(as_object(tool, f"tools[{index}]"), f"tools[{index}]") for index, tool in tools]
    if given.get("tool_choice") is not None:
        choice = as_object(given["tool_choice"], "tool_choice")
        fields["tool_choice"] = _tool_choice(choice)
        if choice.get("disable_parallel_tool_use") is True:
            fields["parallel_tool_calls"] = False
    return fields


def _tool(tool: Fields, path: str) -> Fields:
    if tool.get("type") is not None and tool["type"] != "custom":
        raise unsupported(f"{path}.type", f"{str(tool['type'])[:50]!r} runs on a server that is not here: use 'custom'")
    function: Fields = {"name": as_text(tool.get("name"), f"{path}.name")}
    if tool.get("description") is not None:
        function["description"] = as_text(tool["description"], f"{path}.description")
    function["parameters"] = as_object(tool.get("input_schema"), f"{path}.input_schema")
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _tool_choice(choice: Fields) -> str | Fields:
    kind: Any = choice.get("type")
    if kind == "tool":
        name = as_text(choice.get("name"), "tool_choice.name")
        return {"type": "function", "function": {"name": name}}
    names = {"auto": "auto", "any": "required", "none": "none"}
    if not is_one_of(kind, *names):
        raise ApiError(400, f"tool_choice.type={kind!r} is none of auto, any, tool, none", param="tool_choice.type")
    return names[kind]


def _thinking(value: Any) -> Fields:
    if value is None:
        return {}
    thinking = as_object(value, "thinking")
    kind = thinking.get("type")
    if kind == "disabled":
        return {"thinking": {"type": "disabled"}}
    if kind == "enabled":
        budget = thinking.get("budget_tokens")
        return {"thinking": {"type": "enabled", **({} if budget is None else {"budget_tokens": budget})}}
    if is_one_of(kind, "adaptive", "between_tools"):
        return {}  # the model's own way
    expected = "enabled, disabled, adaptive, between_tools"
    raise ApiError(400, f"thinking.type={kind!r} is none of {expected}", param="thinking.type")


def _output(value: Any) -> Fields:
    if value is None:
        return {}
    output = as_object(value, "output_config")
    fields: Fields = {}
    if output.get("effort") is not None:
        fields["reasoning_effort"] = output["effort"]
    if output.get("format") is not None:
        form = as_object(output["format"], "output_config.format")
        if form.get("type") != "json_schema":
            raise ApiError(
                400,
                f"output_config.format.type={form.get('type')!r} is not json_schema",
                param="output_config.format.type",
            )
        schema = as_object(form.get("schema"), "output_config.format.schema")
        described = {"name": "answer", "schema": schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": described}
    return fields
