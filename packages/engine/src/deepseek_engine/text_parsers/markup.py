"""The table of formats: how each model family writes its reasoning and its tool calls.

A tool format is an opening tag, then calls in one of four bodies:

tagged  <open><call_open>NAME<name_end>{"a": 1}<call_close>...<block_close>     DeepSeek V3, R1, V3.1; Mistral from v11
json    <open>{"name": "NAME", "arguments": {"a": 1}}<call_close>               Hermes, Qwen, Llama 3, Mistral to v7
dsml    <open><call_open>NAME"><parameter...>1</parameter></invoke><block_close>    DeepSeek V3.2, V4
pythonic   [NAME(a=1), NAME(b=2)]                                                       Llama 3.2

Sources: the chat templates and encoding files that DeepSeek, Nous Research, Qwen, Meta and Mistral publish.
"""

from dataclasses import dataclass
from typing import Final, Literal

Body = Literal["tagged", "json", "dsml", "pythonic"]


@dataclass(frozen=True, slots=True)
class ReasoningMarkup:
    """The tags around an answer's reasoning.

    Attributes:
        trims_newlines: the newlines beside the tags belong to the markup.
    """

    open: str = "<think>"
    close: str = "</think>"
    trims_newlines: bool = False


@dataclass(frozen=True, slots=True)
class CallStyle:
    """What follows the opening tag.

    Attributes:
        body: how a call is written.
        lead: what has to follow the opening tag for this style.
        call_open: what each call begins with.
        name_end: ends a tagged body's name.
        call_close: what each call ends with, whitespace allowed between the parts.
        separator: stands between calls.
        block_close: ends the calls; without one they end with the first call that no separator follows.
    """

    body: Body
    lead: str = ""
    call_open: str = ""
    name_end: str = ""
    call_close: tuple[str, ...] = ()
    separator: str = ""
    block_close: str = ""


@dataclass(frozen=True, slots=True)
class ToolMarkup:
    """How a model calls tools.

    Attributes:
        opens: tags that begin calls.
        styles: what may follow them; the first whose `lead` is there.
        bare_start: an answer that begins with this character is calls without an opening tag.
        has_short_ids: the model's templates take call ids of nine letters and digits only.
    """

    opens: tuple[str, ...]
    styles: tuple[CallStyle, ...]
    bare_start: str = ""
    has_short_ids: bool = False


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What a model's answers may hold besides text."""

    name: str
    reasoning: ReasoningMarkup | None = None
    tools: ToolMarkup | None = None

    @property
    def tags(self) -> frozenset[str]:
        """Every tag, for telling markup tokens from text."""
        found: set[str] = set()
        if self.reasoning is not None:
            found |= {self.reasoning.open, self.reasoning.close}
        if self.tools is not None:
            found |= set(self.tools.opens)
            for style in self.tools.styles:
                found |= {style.call_open, style.name_end, style.block_close, *style.call_close}
        return frozenset(found - {""})


_THINK: Final = ReasoningMarkup()
_THINK_LINES: Final = ReasoningMarkup(trims_newlines=True)

_DEEPSEEK_V3: Final = ToolMarkup(
    opens=("<｜tool▁calls▁begin｜>",),
    styles=(
        CallStyle(
            "tagged",
            call_open="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            name_end="\n```json",
            call_close=("```", "<｜tool▁call▁end｜>"),
            block_close="<｜tool▁calls▁end｜>",
        ),
    ),
)
_DEEPSEEK_V31: Final = ToolMarkup(
    opens=("<｜tool▁calls▁begin｜>",),
    styles=(
        CallStyle(
            "tagged",
            call_open="<｜tool▁call▁begin｜>",
            name_end="<｜tool▁sep｜>",
            call_close=("<｜tool▁call▁end｜>",),
            block_close="<｜tool▁calls▁end｜>",
        ),
    ),
)


def _dsml(block: str) -> ToolMarkup:
    style = CallStyle(
        "dsml",
        call_open='<｜DSML｜invoke name="',
        name_end='">',
        call_close=("</｜DSML｜invoke>",),
        block_close=f"</｜DSML｜{block}>",
    )
    return ToolMarkup(opens=(f"<｜DSML｜{block}>",), styles=(style,))


_HERMES: Final = ToolMarkup(opens=("<tool_call>",), styles=(CallStyle("json", call_close=("</tool_call>",)),))
_LLAMA3: Final = ToolMarkup(opens=("<|python_tag|>",), styles=(CallStyle("json", separator=";"),), bare_start="{")
_PYTHONIC: Final = ToolMarkup(
    opens=("<|python_tag|>",), styles=(CallStyle("pythonic", lead="[", separator=",", block_close="]"),), bare_start="["
)
_MISTRAL: Final = ToolMarkup(
    opens=("[TOOL_CALLS]",),
    styles=(
        CallStyle("json", lead="[", separator=",", block_close="]"),
        CallStyle("tagged", name_end="[ARGS]"),
    ),
    has_short_ids=True,
)

FORMATS: Final[dict[str, AnswerFormat]] = {
    answer_format.name: answer_format
    for answer_format in (
        AnswerFormat("plain"),
        AnswerFormat("deepseek-v3", None, _DEEPSEEK_V3),
        AnswerFormat("deepseek-r1", _THINK_LINES, _DEEPSEEK_V3),
        AnswerFormat("deepseek-v3.1", _THINK, _DEEPSEEK_V31),
        AnswerFormat("deepseek-v3.2", _THINK, _dsml("function_calls")),
        AnswerFormat("deepseek-v4", _THINK, _dsml("tool_calls")),
        AnswerFormat("hermes", None, _HERMES),
        AnswerFormat("qwen3", _THINK_LINES, _HERMES),
        AnswerFormat("llama3-json", None, _LLAMA3),
        AnswerFormat("llama3-pythonic", None, _PYTHONIC),
        AnswerFormat("mistral", None, _MISTRAL),
        AnswerFormat("think", _THINK_LINES, None),
    )
}
