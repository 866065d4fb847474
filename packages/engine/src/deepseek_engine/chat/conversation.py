"""What a chat encoder takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from deepseek_engine.errors import InvalidRequestError
from deepseek_engine.text_parsers.markup import AnswerFormat, ReasoningMarkup
from deepseek_engine.text_parsers.parser import ReasoningStart

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS: Final[tuple[Effort, ...]] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

Message = dict[str, Any]
"""`role`, `content` and, where there are any, `reasoning_content`, `tool_calls`, `tool_call_id`, `name`; as OpenAI
writes them, but `content` is text and a call's `arguments` are the text of a JSON object."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns so far, and how the next one is wanted.

    Attributes:
        messages: the turns.
        tools: function tools that the model is told of, in OpenAI's form.
        thinking: whether the model thinks before it answers; None leaves that to the model.
        reasoning_effort: how much it thinks, where the model can be told.
        continue_final: the answer continues the last message, which is the assistant's.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] = ()
    thinking: bool | None = None
    reasoning_effort: Effort | None = None
    continue_final: bool = False

    @property
    def turns(self) -> list[Message]:
        """The messages without the one that the answer continues."""
        return list(self.messages[:-1] if self.continue_final else self.messages)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A prompt's text, and where it leaves the model."""

    text: str
    reasoning: ReasoningStart


class ChatEncoder(Protocol):
    """Writes conversations the way one model was trained on them."""

    @property
    def format(self) -> AnswerFormat:
        """What the model's answers hold."""
        ...

    @property
    def takes_tools(self) -> bool:
        """Whether the model can be told of tools."""
        ...

    @property
    def literals(self) -> str:
        """Every piece of markup that the encoder may write, in one text."""
        ...

    @property
    def may_block(self) -> bool:
        """Whether `encode` waits for another process, and so has no place on an event loop."""
        ...

    def encode(self, conversation: Conversation) -> ChatPrompt:
        """The prompt that asks for the next assistant turn, or for the rest of the last one.

        Raises:
            InvalidRequestError: the model's form cannot hold the conversation; `param` names the field.
        """
        ...


def finish_prompt(text: str, conversation: Conversation, markup: ReasoningMarkup | None) -> ChatPrompt:
    """The prompt after its generation prompt: where it left the model, and the begun answer, if there is one.

    A begun answer stands where the model would stand had it written that much itself: with `reasoning_content` alone
    it is still thinking, with `content` it has stopped.

    Raises:
        InvalidRequestError: there is reasoning to continue and the model does not think.
    """
    start = _reasoning_start(text, conversation, markup)
    if not conversation.continue_final:
        return ChatPrompt(text, start)
    message = conversation.messages[-1]
    content, reasoning = message.get("content") or "", message.get("reasoning_content") or ""
    if markup is None or start == "closed":
        if reasoning:
            raise InvalidRequestError("reasoning_content: this model is not thinking, so it has none", param="messages")
        return ChatPrompt(text + content, start)
    newline = "\n" if markup.trims_newlines else ""
    if reasoning and start == "possible":
        text += markup.open + newline
    if reasoning and not content:
        return ChatPrompt(text + reasoning, "open")
    if reasoning or start == "open":
        text += reasoning + newline + markup.close + 2 * newline
    return ChatPrompt(text + content, "closed")


def _reasoning_start(text: str, conversation: Conversation, markup: ReasoningMarkup | None) -> ReasoningStart:
    if markup is None:
        return "closed"
    text = text.rstrip()
    if text.endswith(markup.open):
        return "open"
    return "closed" if text.endswith(markup.close) or conversation.thinking is False else "possible"
