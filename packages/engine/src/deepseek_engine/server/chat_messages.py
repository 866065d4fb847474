"""Wire messages to the plain turns that a chat template takes."""

from collections.abc import Sequence
from typing import Final

from deepseek_client.types import ChatMessage
from deepseek_engine.server.errors import ApiError, unsupported
from deepseek_engine.server.limits import MAX_MESSAGES

# Roles end up in the prompt's markup, so that only known ones may pass. OpenAI renamed `system` to `developer`.
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def plain_messages(messages: Sequence[ChatMessage]) -> tuple[list[dict[str, str]], bool]:
    """Turns of `role` and `content`, and whether the answer continues the last one.

    Raises:
        ApiError: 400, `param` names the message and field at fault.
    """
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise ApiError(
            400, f"messages has {len(messages)} entries: from 1 to {MAX_MESSAGES} are allowed", param="messages"
        )
    turns = [_plain_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    *earlier, last = messages
    for index, message in enumerate(earlier):
        if message.prefix:
            raise ApiError(400, "prefix: only the last message can be continued", param=f"messages[{index}].prefix")
    if last.prefix and last.role != "assistant":
        raise ApiError(
            400, "prefix: only an assistant message can be continued", param=f"messages[{len(earlier)}].prefix"
        )
    return turns, bool(last.prefix)


def _plain_message(message: ChatMessage, path: str) -> dict[str, str]:
    if message.role == "tool" or message.tool_calls:
        raise unsupported(f"{path}.{'tool_calls' if message.tool_calls else 'role'}", "tools are not supported yet")
    role = _ROLES.get(message.role)
    if role is None:
        raise ApiError(
            400, f"role {message.role[:50]!r} is unknown: use one of {', '.join(_ROLES)}", param=f"{path}.role"
        )
    return {"role": role, "content": _text(message, path)}


def _text(message: ChatMessage, path: str) -> str:
    content = message.content
    if content is None:
        if message.role == "assistant":
            return ""
        raise ApiError(400, f"a {message.role} message needs content", param=f"{path}.content")
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise unsupported(
                f"{path}.content[{index}]",
                f"content of type {part.type[:50]!r} is not supported: this model reads text",
            )
        parts.append(part.text)
    return "".join(parts)
