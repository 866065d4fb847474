"""What the encoders of DeepSeek V3.2 and V4 share: their tokens, and tool calls in DSML markup.

Source: the `encoding` folders that DeepSeek publishes with the checkpoints.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, cast

from deepseek_engine.chat.conversation import Conversation, Message
from deepseek_engine.errors import InvalidRequestError

BOS: Final = "<｜begin▁of▁sentence｜>"
EOS: Final = "<｜end▁of▁sentence｜>"
USER: Final = "<｜User｜>"
ASSISTANT: Final = "<｜Assistant｜>"
THINK: Final = "<think>"
END_THINK: Final = "</think>"
DSML: Final = "｜DSML｜"

LITERALS: Final = " ".join((BOS, EOS, USER, ASSISTANT, THINK, END_THINK, DSML))


def check_last_turn(turns: Sequence[Message]) -> None:
    """Refuse a conversation in which it is not the assistant's turn: these models have no other markup.

    Raises:
        InvalidRequestError: the last turn is not a user's or a tool's.
    """
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        raise InvalidRequestError(
            "messages: the last one must be of the user or a tool, or of the assistant with prefix: true",
            param="messages",
        )


def with_tools(conversation: Conversation, description: str) -> list[Message]:
    """The turns, with the tools described in the first system message; a conversation without one gets one."""
    turns = conversation.turns
    if not conversation.tools:
        return turns
    schemas = "\n".join(to_json(tool["function"]) for tool in conversation.tools)
    described = "\n\n" + description.replace("{schemas}", schemas)
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": turns[0]["content"] + described}, *turns[1:]]
    return [{"role": "system", "content": described}, *turns]


def last_index_of(turns: Sequence[Message], role: str) -> int:
    """Where the last turn of a role is; -1 if there is none."""
    return max((index for index, turn in enumerate(turns) if turn["role"] == role), default=-1)


def tool_calls(message: Message, block: str) -> str:
    """The tool calls of an assistant's message as it wrote them; nothing if it has none."""
    calls = cast("list[dict[str, Any]]", message.get("tool_calls") or [])
    if not calls:
        return ""
    invocations = "\n".join(_invocation(call["function"]) for call in calls)
    return f"\n\n<{DSML}{block}>\n{invocations}\n</{DSML}{block}>"


def to_json(value: Any) -> str:
    """JSON in the spelling that the models were trained on."""
    return json.dumps(value, ensure_ascii=False)


def _invocation(function: dict[str, Any]) -> str:
    parameters = "\n".join(_parameter(key, value) for key, value in json.loads(function["arguments"]).items())
    return f'<{DSML}invoke name="{function["name"]}">\n{parameters}\n</{DSML}invoke>'


def _parameter(key: str, value: Any) -> str:
    is_string = isinstance(value, str)
    text = value if is_string else to_json(value)
    return f'<{DSML}parameter name="{key}" string="{str(is_string).lower()}">{text}</{DSML}parameter>'
