"""Asking the caller's function for the API key, in either driver."""

import inspect
from collections.abc import Callable
from typing import Any

from deepseek_client.errors import ConfigurationError


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
