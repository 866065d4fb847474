"""The encoder of DeepSeek V3.2, which ships no template.

Every user turn ends in the tag that opens or closes the answer's reasoning. Reasoning is kept for answers after the
last user turn only: between its tool calls the model thinks on, and a new question begins afresh.
"""

from typing import Final

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

_BLOCK: Final = "function_calls"

# The published text, word for word: the model was trained on it.
_TOOLS: Final = f"""## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{DSML}function_calls>" block like the following as part of your reply to \
the user:
<{DSML}function_calls>
<{DSML}invoke name="$FUNCTION_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$FUNCTION_NAME2">
...
</{DSML}invoke>
</{DSML}function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should \
use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types \
(numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. \
Here is an example:

<{DSML}function_calls>
...
</{DSML}function_calls>

<function_results>
...
</function_results>

{THINK}...thinking about results{END_THINK}

Here are the functions available in JSONSchema format:
<functions>
{{schemas}}
</functions>
"""


class DeepSeekV32Encoder:
    """Implements ChatEncoder. Without a word on thinking the model answers at once."""

    format: AnswerFormat = FORMATS["deepseek-v3.2"]
    takes_tools: bool = True
    literals: str = LITERALS
    may_block: bool = False

    def encode(self, conversation: Conversation) -> ChatPrompt:
        """Write the turns one after the other.

        Raises:
            InvalidRequestError: it is not the assistant's turn.
        """
        turns = with_tools(conversation, _TOOLS)
        check_last_turn(turns)
        thinks = bool(conversation.thinking)
        last_user = last_index_of(turns, "user")
        roles = ["", *(turn["role"] for turn in turns), ""]
        text = BOS + "".join(
            self._turn(turn, thinks=thinks, is_current=index >= last_user, before=before, after=after)
            for index, (turn, before, after) in enumerate(zip(turns, roles, roles[2:], strict=False))
        )
        return finish_prompt(text, conversation, self.format.reasoning)

    def _turn(self, turn: Message, *, thinks: bool, is_current: bool, before: str, after: str) -> str:
        content = turn["content"] or ""
        think = THINK if thinks and is_current else END_THINK
        match turn["role"]:
            case "user":
                return f"{USER}{content}{ASSISTANT}{think}"
            case "tool":
                opening = "" if before == "tool" else "\n\n<function_results>"
                closing = "" if after == "tool" else f"\n</function_results>\n\n{think}"
                return f"{opening}\n<result>{content}</result>{closing}"
            case "assistant":
                reasoning = (turn.get("reasoning_content") or "") + END_THINK if thinks and is_current else ""
                return f"{reasoning}{content}{tool_calls(turn, _BLOCK)}{EOS}"
            case _:
                return content
