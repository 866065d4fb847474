"""The events of `chat.completions.stream`: what an answer says, part by part. Tell them apart by class or by `.type`.

| class            | `.type`            | when                                                                     |
|------------------|--------------------|--------------------------------------------------------------------------|
| `ReasoningDelta` | `reasoning.delta`  | a piece of the reasoning                                                 |
| `ReasoningDone`  | `reasoning.done`   | the reasoning is whole: its text                                         |
| `ContentDelta`   | `content.delta`    | a piece of the answer                                                    |
| `ContentDone`    | `content.done`     | the answer's text is whole                                               |
| `ToolCallDelta`  | `tool_call.delta`  | a piece of a call's arguments; its name from the first piece on          |
| `ToolCallDone`   | `tool_call.done`   | a call is whole                                                          |
| `Finish`         | `finish`           | a choice has ended: why                                                  |
| `UsageReport`    | `usage`            | token counts                                                             |
| `KeepAlive`      | `keep_alive`       | the server is still there; only with `keep_alives=True`                  |

Each event that a chunk of the server gave holds it as `.chunk`.
"""

from dataclasses import dataclass, field
from typing import Literal

from deepseek_client.types.base import Usage
from deepseek_client.types.chat import ChatCompletionChunk, ToolCall


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the reasoning of choice `index`."""

    text: str
    index: int = 0
    chunk: ChatCompletionChunk | None = field(default=None, repr=False, compare=False)
    type: Literal["reasoning.delta"] = "reasoning.delta"


@dataclass(frozen=True, slots=True)
class ReasoningDone:
    """The reasoning of choice `index`, whole."""

    text: str
    index: int = 0
    chunk: ChatCompletionChunk | None = field(default=None, repr=False, compare=False)
    type: Literal["reasoning.done"] = "reasoning.done"


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """A piece of the text of choice `index`."""

    text: str
    index: int = 0
    chunk: ChatCompletionChunk | None = field(default=None, repr=False, compare=False)
    type: Literal["content.delta"] = "content.delta"


@dataclass(frozen=True, slots=True)
class ContentDone:
    """The text of choice `index`, whole."""

    text: str
    index: int = 0
    chunk: ChatCompletionChunk | None = field(default=None, repr=False, compare=False)
    type: Literal["content.done"] = "content.done"


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call of choice `index`.

    Attributes:
        position: which of the choice's calls.
        id, name: of the call, as far as they are known.
        arguments: the piece of the JSON text.
    """

    position: int
    id: str | None
    name: str | None
    arguments: str
    index: int = 0
    chunk: ChatCompletionChunk | None = field(default=None, repr=False, compare=False)
    type: Literal["tool_call.delta"] = "tool_call.delta"


@dataclass(frozen=True, slots=True)
class ToolCallDone:
    """A tool call of choice `index`, whole."""

    position: int
    tool_call: ToolCall
    index: int = 0
    chunk: ChatCompletionChunk | None = field(default=None, repr=False, compare=False)
    type: Literal["tool_call.done"] = "tool_call.done"


@dataclass(frozen=True, slots=True)
class Finish:
    """Choice `index` has ended: `stop`, `length`, `tool_calls`, or a word of the server's."""

    finish_reason: str
    index: int = 0
    chunk: ChatCompletionChunk | None = field(default=None, repr=False, compare=False)
    type: Literal["finish"] = "finish"


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Token counts; usually once, at the end."""

    usage: Usage
    chunk: ChatCompletionChunk | None = field(default=None, repr=False, compare=False)
    type: Literal["usage"] = "usage"


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """A comment of the server, which is still working on the answer."""

    comment: str
    type: Literal["keep_alive"] = "keep_alive"


ChatEvent = (
    ReasoningDelta
    | ReasoningDone
    | ContentDelta
    | ContentDone
    | ToolCallDelta
    | ToolCallDone
    | Finish
    | UsageReport
    | KeepAlive
)
"""Any of them."""
