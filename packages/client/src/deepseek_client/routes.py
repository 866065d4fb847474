"""Where a call goes: paths are the same everywhere, but DeepSeek's cloud has some under `/beta` only. Pure."""

from collections.abc import Mapping
from typing import Any, cast

from deepseek_client.settings import Settings


def completions_path(settings: Settings) -> str:
    """The path of plain completions, and with a suffix of FIM; other servers have no `/beta`."""
    return "/beta/completions" if settings.is_deepseek else "completions"


def chat_path(settings: Settings, body: Mapping[str, Any]) -> str:
    """The path of a chat: DeepSeek's cloud goes on with a message, and holds to strict schemas, under `/beta` only."""
    is_beta = settings.is_deepseek and (_continues(body) or _is_strict(body))
    return "/beta/chat/completions" if is_beta else "chat/completions"


def _continues(body: Mapping[str, Any]) -> bool:
    messages = body.get("messages")
    last: object = messages[-1] if messages else None
    if isinstance(last, Mapping):
        return bool(cast("Mapping[str, Any]", last).get("prefix"))
    return bool(getattr(last, "prefix", None))


def _is_strict(body: Mapping[str, Any]) -> bool:
    """Whether every tool asks for a strict schema: DeepSeek takes them all together, or not at all."""
    tools = cast("list[Mapping[str, Any]]", body.get("tools") or [])
    functions = [cast("Mapping[str, Any]", tool.get("function") or {}) for tool in tools]
    return bool(functions) and all(function.get("strict") for function in functions)
