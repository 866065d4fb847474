"""What stands between the usage tap and the caller: a word filter, a translation into another dialect.

A stage never sees half an event, and sees the trailer and [DONE] too. Without stages an answer's bytes pass untouched.
"""

from collections.abc import Sequence
from typing import Protocol


class Stage(Protocol):
    """One step that an answer passes. It is made for one request and keeps that request's state."""

    def pass_on(self, frame: bytes) -> bytes:
        """What becomes of one whole event: whole events, possibly none.

        Raises:
            EndAnswer: the answer ends here.
        """
        ...

    def body(self, body: bytes) -> bytes:
        """What becomes of an answer in one piece. Error bodies do not come here.

        Raises:
            EndAnswer: another body is the answer; the reason goes into the ledger.
        """
        ...


class EndAnswer(Exception):  # noqa: N818  an outcome, not a fault
    """A stage ends the answer: the engine is stopped and the books are closed with `reason`, at HTTP status 200.

    Args:
        last: for a stream, the events that still go to the caller, in the engine's dialect: what was held back, and the
            event with the finish_reason. The relay adds usage, if the caller asked for it, and [DONE]. For an answer
            in one piece, its whole body.
        reason: the ledger's end_reason, such as `content_filter`.
    """

    def __init__(self, last: bytes, reason: str) -> None:
        super().__init__(reason)
        self.last = last
        self.reason = reason


class StageChain:
    """Stages in order. Once one has ended the answer, `ended` says how, and only `finish` gives more."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        self._first = 0
        self.ended: EndAnswer | None = None

    def pass_on(self, frames: list[bytes]) -> bytes:
        """Send whole events through all stages; each of `frames` may be several."""
        if self.ended is not None:
            return b""
        return self._pass([event for frame in frames for event in split_events(frame)], 0)

    def finish(self, closing: bytes) -> bytes:
        """Send the last events of an answer that a stage ended through the stages after that one."""
        return self._pass(split_events(closing), self._first)

    def body(self, body: bytes) -> bytes:
        """Send a whole answer through all stages."""
        for stage in self._stages:
            try:
                body = stage.body(body)
            except EndAnswer as end:
                self.ended = self.ended or end
                body = end.last
        return body

    def _pass(self, frames: list[bytes], first: int) -> bytes:
        for position in range(first, len(self._stages)):
            frames = self._pass_one(frames, position)
        return b"".join(frames)

    def _pass_one(self, frames: list[bytes], position: int) -> list[bytes]:
        stage, passed = self._stages[position], list[bytes]()
        for frame in frames:
            try:
                passed.extend(split_events(stage.pass_on(frame)))
            except EndAnswer as end:
                if self.ended is None:
                    self.ended, self._first = end, position + 1
                break
        return passed


def split_events(data: bytes) -> list[bytes]:
    """Whole events, one by one."""
    if not data:
        return []
    if data.find(b"\n\n") == len(data) - 2:
        return [data]
    return [event + b"\n\n" for event in data.split(b"\n\n") if event]
