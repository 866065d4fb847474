"""Calling the caller's functions, in either driver: for the API key, and a model's tools."""

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

from deepseek_client.effects import ToolRequest
from deepseek_client.errors import ConfigurationError, ToolArgumentsError


def ask_key(provider: Callable[[], Any]) -> str | None:
    """The key that a plain function gives.

    Raises:
        ConfigurationError: the function is a coroutine function, or gives something else than a key.
    """
    key = provider()
    if inspect.isawaitable(key):
        getattr(key, "close", lambda: None)()  # never awaited
        raise ConfigurationError("api_key is a coroutine function: use AsyncDeepSeek")
    return _text(key)


async def ask_key_async(provider: Callable[[], Any]) -> str | None:
    """The key that a function or a coroutine function gives."""
    key = provider()
    return _text(await key if inspect.isawaitable(key) else key)


def _text(key: Any) -> str | None:
    if key is None or isinstance(key, str):
        return key
    raise ConfigurationError(f"api_key() gave a {type(key).__name__}, not a string")


def call_tool(request: ToolRequest) -> object:
    """What the function gave, or the text of its failure: the model is told, and may try otherwise."""
    try:
        arguments = _bind(request)
        return request.tool.function(**arguments)
    except Exception as error:  # whatever a tool raises is an answer to the model; an interrupt is none
        return failure_text(error)


async def call_tool_async(request: ToolRequest) -> object:
    """As `call_tool`; functions that block go to a thread, so that the loop runs on."""
    try:
        arguments = _bind(request)
        if request.tool.is_async:
            return await request.tool.function(**arguments)
        return await asyncio.to_thread(request.tool.function, **arguments)
    except Exception as error:
        return failure_text(error)


def failure_text(error: Exception) -> str:
    """What the model is told of a tool that failed."""
    return json.dumps({"error": f"{type(error).__name__}: {error}"}, ensure_ascii=False)


def _bind(request: ToolRequest) -> dict[str, Any]:
    if request.tool is None:
        raise ToolArgumentsError(f"there is no tool {request.name!r}, only: {', '.join(request.known)}")
    return request.tool.bind(request.arguments)
