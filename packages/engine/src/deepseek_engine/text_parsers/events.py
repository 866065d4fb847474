"""What a parser finds in an answer. Joined, the events of an answer are the same however its text was cut."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContentText:
    """More of what the caller reads."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A declared tool is being called; `index` counts the answer's calls, dropped ones among them."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """More of a call's arguments, JSON text.

    Its last brace comes only with the call's end, so that what was cut off or malformed is never a JSON object.
    """

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The call is closed, and its arguments are one JSON object."""

    index: int


@dataclass(frozen=True, slots=True)
class ToolCallDropped:
    """The call was malformed or never closed: it is none, and its markup follows as content."""

    index: int


Event = ContentText | ReasoningText | ToolCallStart | ToolArguments | ToolCallEnd | ToolCallDropped


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """All events of an answer, joined."""

    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]


def join_events(events: list[Event]) -> ParsedAnswer:
    """The whole answer that the events make; only calls that ended are in it."""
    content: list[str] = []
    reasoning: list[str] = []
    names: dict[int, str] = {}
    arguments: dict[int, list[str]] = {}
    ended: list[int] = []
    for event in events:
        match event:
            case ContentText(text):
                content.append(text)
            case ReasoningText(text):
                reasoning.append(text)
            case ToolCallStart(index, name):
                names[index] = name
                arguments[index] = []
            case ToolArguments(index, text):
                arguments[index].append(text)
            case ToolCallEnd(index):
                ended.append(index)
            case ToolCallDropped():
                pass
    calls = tuple(ToolCall(names[index], "".join(arguments[index])) for index in ended)
    return ParsedAnswer("".join(content), "".join(reasoning), calls)
