"""One answer's tokens to what it says: text, and where its format has them, reasoning and tool calls."""

from collections.abc import Sequence

import msgspec

from deepseek_engine.detokenizer import Detokenizer
from deepseek_engine.text_parsers.events import Event
from deepseek_engine.text_parsers.parser import AnswerParser, ParserSpec
from deepseek_engine.tokenizer import Tokenizer


class Reading(msgspec.Struct, frozen=True):
    """What some tokens added to an answer.

    Attributes:
        text: new text that is safe to send; empty where `events` say it.
        num_tokens: how many of the tokens belong to the answer; those after its end do not.
        has_ended: a stop string or the last allowed tool call ended the answer.
        events: what a parser found; empty without one.
        is_reasoning: for each token that belongs, whether it was reasoning; empty without a parser.
    """

    text: str
    num_tokens: int
    has_ended: bool = False
    events: Sequence[Event] = ()
    is_reasoning: Sequence[bool] = ()


class AnswerReader:
    """Reads one answer. Stop strings are looked for in the text as the model writes it, markup included.

    Args:
        tokenizer: the model's.
        stop: strings that end the answer.
        spec: what to parse; without anything to parse the text passes through.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), spec: ParserSpec | None = None) -> None:
        self._parser = AnswerParser(spec) if spec is not None and spec.is_needed else None
        self._detokenizer = Detokenizer(
            tokenizer.text_stream(spec.format if spec is not None and self._parser is not None else None), stop
        )

    @property
    def has_called(self) -> bool:
        """Whether a tool call has been read to its end."""
        return self._parser is not None and self._parser.num_calls > 0

    def push(self, token_ids: Sequence[int]) -> Reading:
        """Take new tokens; not to be called after the answer has ended."""
        if self._parser is not None:
            return self._parse(self._parser, token_ids)
        added = self._detokenizer.push(token_ids)
        return Reading(added.text, added.num_tokens, added.stop is not None)

    def finish(self) -> Reading:
        """What was held back, when no more tokens come."""
        added = self._detokenizer.finish()
        if self._parser is None:
            return Reading(added.text, 0, added.stop is not None)
        events = [*self._parser.push(added.text), *self._parser.finish()]
        return Reading("", 0, added.stop is not None, events)

    def _parse(self, parser: AnswerParser, token_ids: Sequence[int]) -> Reading:
        """Token by token, as each is counted as reasoning or not: the tokens of the tags are not."""
        events: list[Event] = []
        is_reasoning: list[bool] = []
        for token_id in token_ids:
            was_reasoning = parser.in_reasoning
            added = self._detokenizer.push((token_id,))
            events += parser.push(added.text)
            is_reasoning.append(was_reasoning and parser.in_reasoning)
            if added.stop is not None or parser.is_complete:
                events += parser.finish()
                return Reading("", len(is_reasoning), True, events, is_reasoning)
        return Reading("", len(is_reasoning), False, events, is_reasoning)
