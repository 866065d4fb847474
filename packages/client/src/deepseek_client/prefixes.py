"""An answer that begins with a text of the caller's: one call, three dialects. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deepseek_client.settings import Settings
from deepseek_client.types.chat import ChatCompletion, ChatMessage


@dataclass(frozen=True, slots=True)
class Continuation:
    """How the answer begins: its text, and the reasoning that led to it, if there was any."""

    text: str
    reasoning: str | None = None

    def to_message(self) -> dict[str, Any]:
        """The turn that the server is to go on with."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        return message if self.reasoning is None else {**message, "reasoning_content": self.reasoning}

    def joined(self, completion: ChatCompletion) -> ChatCompletion:
        """The completion with the beginning in front of each of its answers."""
        for choice in completion.choices:
            message = choice.message
            message.content = self.text + _text(message)
            if self.reasoning is not None:
                message.reasoning_content = self.reasoning + (message.reasoning_content or "")
        return completion


def continuation_of(settings: Settings, messages: Iterable[Any], continuation: Continuation) -> dict[str, Any]:
    """The fields of a chat that goes on with the last message, in the words that the server knows.

    DeepSeek and our servers read `prefix`, vLLM and SGLang `continue_final_message`; each ignores the other's, so that
    an unknown server is sent both.
    """
    fields: dict[str, Any] = {}
    message = continuation.to_message()
    if settings.profile != "openai":
        message["prefix"] = True
    if settings.profile in ("auto", "openai") and not settings.is_deepseek:
        fields = {"continue_final_message": True, "add_generation_prompt": False}
    return {"messages": [*messages, message], **fields}


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text or "" for part in message.content or ())
