"""The encoder of models that ship a Jinja chat template."""

from typing import Any, Final

from deepseek_engine.chat.conversation import ChatPrompt, Conversation, finish_prompt
from deepseek_engine.chat_template import ChatTemplate
from deepseek_engine.text_parsers.markup import FORMATS, AnswerFormat


class TemplateEncoder:
    """Implements ChatEncoder with a template.

    Args:
        template: the model's.
        answer_format: what its answers hold; told from the template if not given.
    """

    def __init__(self, template: ChatTemplate, answer_format: AnswerFormat | None = None) -> None:
        self._template = template
        self.format: AnswerFormat = detect_format(template.source) if answer_format is None else answer_format
        self.takes_tools: bool = "tools" in template.variables
        self.literals: str = template.source

    def encode(self, conversation: Conversation) -> ChatPrompt:
        """Render the template, then the begun answer.

        Raises:
            InvalidRequestError: the template refuses the messages, fails on them, or gives too much text.
        """
        variables: dict[str, Any] = {"tools": list(conversation.tools) or None, "documents": None}
        if conversation.thinking is not None:
            # DeepSeek's templates call it `thinking`, Qwen's `enable_thinking`.
            variables |= {"thinking": conversation.thinking, "enable_thinking": conversation.thinking}
        if conversation.reasoning_effort is not None:
            variables["reasoning_effort"] = conversation.reasoning_effort
        text = self._template.render(conversation.turns, variables)
        return finish_prompt(text, conversation, self.format.reasoning)


_MARKS: Final[tuple[tuple[str, str, str], ...]] = (
    # What a template has in it, the format without reasoning, and the one with it.
    ("｜DSML｜tool_calls", "deepseek-v4", "deepseek-v4"),
    ("｜DSML｜function_calls", "deepseek-v3.2", "deepseek-v3.2"),
    ("```json", "deepseek-v3", "deepseek-r1"),
    ("<｜tool▁sep｜>", "deepseek-v3.1", "deepseek-v3.1"),
    ("<tool_call>", "hermes", "qwen3"),
    ("[TOOL_CALLS]", "mistral", "mistral"),
    ("<|python_tag|>", "llama3-json", "llama3-json"),
    ('"parameters": ', "llama3-json", "llama3-json"),
)


def detect_format(source: str) -> AnswerFormat:
    """What a template's model answers, told from the markup that it writes for earlier answers."""
    thinks = "<think>" in source or "</think>" in source
    for mark, plain, thinking in _MARKS:
        if mark in source and (mark != "```json" or "<｜tool▁sep｜>" in source):
            return FORMATS[thinking if thinks else plain]
    return FORMATS["think" if thinks else "plain"]
