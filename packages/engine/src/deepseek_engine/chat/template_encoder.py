"""The encoder of models that ship a Jinja chat template."""

from dataclasses import dataclass
from typing import Any, Final

from deepseek_engine.chat.bounded_template import Template
from deepseek_engine.chat.conversation import ChatPrompt, Conversation, finish_prompt
from deepseek_engine.text_parsers.markup import FORMATS, AnswerFormat


class TemplateEncoder:
    """Implements ChatEncoder with a template.

    Args:
        template: the model's.
        answer_format: what its answers hold; told from the template if not given.
    """

    def __init__(self, template: Template, answer_format: AnswerFormat | None = None) -> None:
        self._template = template
        self.format: AnswerFormat = detect_format(template.source) if answer_format is None else answer_format
        self.takes_tools: bool = "tools" in template.variables
        self.literals: str = template.source
        self.may_block: bool = template.may_block

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


@dataclass(frozen=True, slots=True)
class _Mark:
    """A format is told from texts that its templates have, and from ones that only look-alikes have."""

    has: tuple[str, ...]
    plain: str
    thinking: str
    has_not: tuple[str, ...] = ()


_MARKS: Final = (
    _Mark(("｜DSML｜", "function_calls"), "deepseek-v3.2", "deepseek-v3.2"),
    _Mark(("｜DSML｜", "tool_calls"), "deepseek-v4", "deepseek-v4"),
    _Mark(("<｜tool▁sep｜>", "```json"), "deepseek-v3", "deepseek-r1"),
    _Mark(("<｜tool▁sep｜>",), "deepseek-v3.1", "deepseek-v3.1"),
    # Qwen3-Coder and GLM write XML parameters within the same tag.
    _Mark(("<tool_call>", '"name"', '"arguments"'), "hermes", "qwen3", ("<function=", "<arg_key>")),
    _Mark(("[TOOL_CALLS]",), "mistral", "mistral"),
    _Mark(("<|start_header_id|>", '"parameters": '), "llama3-json", "llama3-json", ("<function=",)),
)


def detect_format(source: str) -> AnswerFormat:
    """What a template's model answers, told from the markup that it writes for earlier answers."""
    thinks = "<think>" in source or "</think>" in source
    for mark in _MARKS:
        if all(text in source for text in mark.has) and not any(text in source for text in mark.has_not):
            return FORMATS[mark.thinking if thinks else mark.plain]
    return FORMATS["think" if thinks else "plain"]
