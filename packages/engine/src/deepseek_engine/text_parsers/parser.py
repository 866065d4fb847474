"""The one automaton that reads answers: reasoning, then content with tool calls, by the table of the model's format.

What is malformed, not declared or never closed comes back as content, word for word, and nothing inside it is taken
for a call. With no tools declared nothing is read as one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from deepseek_engine.text_parsers.bodies import BODIES
from deepseek_engine.text_parsers.call import CallBuilder
from deepseek_engine.text_parsers.events import ContentText, Event, ReasoningText, ToolArguments
from deepseek_engine.text_parsers.markup import AnswerFormat, CallStyle, ReasoningMarkup, ToolMarkup
from deepseek_engine.text_parsers.source import MalformedError, Reading, Source, TagSet

ReasoningStart = Literal["open", "possible", "closed"]
"""Where the prompt left the model: inside its reasoning, before it, or past it."""

_MAX_TRIMMED_NEWLINES = 2


@dataclass(frozen=True, slots=True)
class ParserSpec:
    """What to look for in one answer.

    Attributes:
        format: the model's.
        reasoning: how the prompt ended.
        tool_names: tools that may be called; none switches their markup off.
        max_calls: the answer is over after this many calls; None is no limit.
    """

    format: AnswerFormat
    reasoning: ReasoningStart = "closed"
    tool_names: frozenset[str] = frozenset()
    max_calls: int | None = None

    @property
    def reads_reasoning(self) -> bool:
        """Whether the answer may hold reasoning."""
        return self.format.reasoning is not None and self.reasoning != "closed"

    @property
    def reads_tools(self) -> bool:
        """Whether the answer may hold tool calls."""
        return self.format.tools is not None and bool(self.tool_names)

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to parse: if not, the text is the content."""
        return self.reads_reasoning or self.reads_tools


class AnswerParser:
    """Parses one answer. Work is linear in the text, and what is held back is a live prefix of a tag or a call's head.

    Attributes:
        in_reasoning: whether the text so far ends within the reasoning.
        is_complete: the allowed number of calls was made; what follows is ignored.
        num_calls: calls committed so far.
    """

    def __init__(self, spec: ParserSpec) -> None:
        self.in_reasoning = False
        self.is_complete = False
        self.num_calls = 0
        self._spec = spec
        self._num_started = 0
        self._source = Source()
        self._events: list[Event] = []
        self._machine: Reading[None] | None = self._answer()
        self._run()

    def push(self, text: str) -> list[Event]:
        """What the next piece of text brings."""
        self._source.feed(text)
        return self._run()

    def finish(self) -> list[Event]:
        """What was held back, now that no more comes."""
        self._source.close()
        return self._run()

    def _run(self) -> list[Event]:
        if self._machine is not None and next(self._machine, True):
            self._machine = None
        events, self._events = self._events, []
        return events

    def _answer(self) -> Reading[None]:
        if self._spec.reads_reasoning and self._spec.format.reasoning is not None:
            yield from self._reasoning(self._spec.format.reasoning)
        if self._spec.reads_tools and self._spec.format.tools is not None:
            yield from self._content(self._spec.format.tools)
        else:
            yield from self._source.copy_until(TagSet(()), self._add_content)

    def _reasoning(self, markup: ReasoningMarkup) -> Reading[None]:
        source = self._source
        if self._spec.reasoning == "possible":
            source.record()
            yield from source.skip()
            if (yield from source.option(markup.open)) is None:
                source.put_back()  # newlines before a call belong to its tag
                return
        self.in_reasoning = True
        newlines = "\n" if markup.trims_newlines else ""
        yield from source.skip(newlines)
        close = TagSet((markup.close,), max_newlines=_MAX_TRIMMED_NEWLINES if newlines else 0)
        if (yield from source.copy_until(close, self._add_reasoning)) is not None:
            self.in_reasoning = False
            yield from source.skip(newlines)

    def _content(self, markup: ToolMarkup) -> Reading[None]:
        source = self._source
        if markup.bare_start:
            source.record()
            yield from source.skip()
            if (yield from source.peek()) == markup.bare_start:
                yield from self._calls(markup, source.recorded)
            else:
                self._add_content(source.recorded)
        opens = TagSet(markup.opens, max_newlines=_MAX_TRIMMED_NEWLINES)
        while not self.is_complete:
            tag = yield from source.copy_until(opens, self._add_content)
            if tag is None:
                return
            yield from self._calls(markup, tag)

    def _calls(self, markup: ToolMarkup, before: str) -> Reading[None]:
        """Read calls from after the opening tag; `before` is what was taken to come here."""
        source = self._source
        source.record(before)
        style = yield from self._choose_style(markup)
        has_committed = False
        while style is not None:
            call = CallBuilder(self._num_started, self._spec.tool_names, self._add)
            try:
                yield from source.skip()
                if (yield from self._ends_block(style)):
                    if not has_committed:
                        self._add_content(source.recorded)
                    break
                yield from BODIES[style.body](source, call, style)
            except MalformedError:
                self._num_started += call.is_started
                call.drop()
                self._add_content(source.recorded)
                if not (yield from self._skip_call(style)):
                    return
                source.record()
                continue
            self._commit(call)
            if self.is_complete:
                return
            has_committed = True
            source.record()
            if not (yield from self._goes_on(style)):
                break
        if has_committed:
            yield from source.skip()

    def _choose_style(self, markup: ToolMarkup) -> Reading[CallStyle | None]:
        yield from self._source.skip()
        *led, last = markup.styles
        for style in led:
            if (yield from self._source.option(style.lead)) is not None:
                return style
        if last.lead and (yield from self._source.option(last.lead)) is None:
            self._add_content(self._source.recorded)
            return None
        return last

    def _ends_block(self, style: CallStyle) -> Reading[bool]:
        """Take what stands before a call; whether it was the end of the block."""
        if not style.call_open:
            return False
        return (yield from self._source.expect(style.call_open, style.block_close)) == style.block_close

    def _goes_on(self, style: CallStyle) -> Reading[bool]:
        """Take what stands after a call; whether another one may follow."""
        if not style.separator:
            return bool(style.block_close)
        yield from self._source.skip()
        ends = (style.block_close,) if style.block_close else ()
        return (yield from self._source.option(style.separator, *ends)) == style.separator

    def _skip_call(self, style: CallStyle) -> Reading[bool]:
        """Copy the rest of a malformed call as content; whether its block goes on."""
        ends = tuple(tag for tag in (*style.call_close[-1:], style.block_close) if tag)
        if not ends:
            return False
        found = yield from self._source.copy_until(TagSet(ends), self._add_content)
        self._add_content(found or "")
        return bool(found and style.block_close and found != style.block_close)

    def _commit(self, call: CallBuilder) -> None:
        call.commit()
        self._num_started += 1
        self.num_calls += 1
        self.is_complete = self.num_calls == self._spec.max_calls

    def _add_content(self, text: str) -> None:
        self._add_text(ContentText, text)

    def _add_reasoning(self, text: str) -> None:
        self._add_text(ReasoningText, text)

    def _add_text(self, kind: Callable[[str], ContentText | ReasoningText], text: str) -> None:
        last = self._events[-1] if self._events else None
        if not text:
            return
        if isinstance(last, ContentText | ReasoningText) and last.__class__ is kind:
            self._events[-1] = kind(last.text + text)
        else:
            self._events.append(kind(text))

    def _add(self, event: Event) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(event, ToolArguments) and isinstance(last, ToolArguments) and last.index == event.index:
            self._events[-1] = ToolArguments(event.index, last.text + event.text)
        else:
            self._events.append(event)
