"""The encoder of DeepSeek V4, which ships no template.

Tool results are part of user turns, and turns of the user that follow each other are one. Earlier reasoning is left
out, unless there are tools: then all of it is kept.
"""

from collections.abc import Sequence
from typing import Any, Final

from deepseek_engine.chat.conversation import ChatPrompt, Conversation, Message, finish_prompt
from deepseek_engine.chat.dsml import (
    ASSISTANT,
    BOS,
    DSML,
    END_THINK,
    EOS,
    LITERALS,
    THINK,
    USER,
    check_last_turn,
    last_index_of,
    tool_calls,
    with_tools,
)
from deepseek_engine.text_parsers.markup import FORMATS, AnswerFormat

_BLOCK: Final = "tool_calls"
_MOST_EFFORTS: Final = ("xhigh", "max")

# The published texts, word for word: the model was trained on them.
_MAX_EFFORT: Final = """Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, \
rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, \
and rejected hypothesis to ensure absolutely no assumption is left unchecked.

"""
_TOOLS: Final = f"""## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
"<{DSML}tool_calls>" block like the following:

<{DSML}tool_calls>
<{DSML}invoke name="$TOOL_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$TOOL_NAME2">
...
</{DSML}invoke>
</{DSML}tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, \
objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning inside \
{THINK}...{END_THINK} BEFORE any tool calls or final response.

Otherwise, output directly after {END_THINK} with tool calls or final response.

### Available Tool Schemas

{{schemas}}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""


class DeepSeekV4Encoder:
    """Implements ChatEncoder. Without a word on thinking the model answers at once."""

    format: AnswerFormat = FORMATS["deepseek-v4"]
    takes_tools: bool = True
    literals: str = LITERALS
    may_block: bool = False

    def encode(self, conversation: Conversation) -> ChatPrompt:
        """Write the turns one after the other.

        Raises:
            InvalidRequestError: it is not the assistant's turn.
        """
        check_last_turn(conversation.turns)
        turns = _merged(with_tools(conversation, _TOOLS))
        thinks = bool(conversation.thinking)
        # The first turn whose answers still have their reasoning.
        kept_from = 0 if conversation.tools else last_index_of(turns, "user")
        effort = _MAX_EFFORT if thinks and conversation.reasoning_effort in _MOST_EFFORTS else ""
        text = BOS + effort
        for index, turn in enumerate(turns):
            is_answered = index + 1 == len(turns) or turns[index + 1]["role"] == "assistant"
            text += self._turn(turn, thinks=thinks and index >= kept_from, is_answered=is_answered)
        return finish_prompt(text, conversation, self.format.reasoning)

    def _turn(self, turn: Message, *, thinks: bool, is_answered: bool) -> str:
        content = turn["content"] or ""
        match turn["role"]:
            case "user":
                return USER + content + (ASSISTANT + (THINK if thinks else END_THINK) if is_answered else "")
            case "assistant":
                reasoning = (turn.get("reasoning_content") or "") + END_THINK if thinks else ""
                return f"{reasoning}{content}{tool_calls(turn, _BLOCK)}{EOS}"
            case _:
                return content


def _merged(turns: Sequence[Message]) -> list[Message]:
    """Turns with each run of user and tool turns as one user turn; tool results in the order of their calls."""
    merged: list[Message] = []
    run: list[Message] = []
    call_ids: list[str] = []
    for turn in (*turns, None):
        if turn is not None and turn["role"] in ("user", "tool"):
            run.append(turn)
            continue
        if run:
            merged.append({"role": "user", "content": "\n\n".join(_parts(run, call_ids))})
            run = []
        if turn is not None:
            merged.append(turn)
            call_ids = [call["id"] for call in turn.get("tool_calls") or ()] or call_ids
    return merged


def _parts(run: Sequence[dict[str, Any]], call_ids: Sequence[str]) -> list[str]:
    def order(turn: Message) -> int:
        call_id = turn["tool_call_id"]
        return call_ids.index(call_id) if call_id in call_ids else 0

    results = iter(sorted((turn for turn in run if turn["role"] == "tool"), key=order))
    return [
        f"<tool_result>{next(results)['content']}</tool_result>" if turn["role"] == "tool" else turn["content"]
        for turn in run
    ]
