"""How one broken stream goes on, where its caller wants that (`resume=True`). Flows and decisions; no I/O.

Where events are numbered (our gateway), the server is asked for those after the last one that came: nothing is lost,
nothing comes twice, and it is billed once. Elsewhere, and where the gateway has lost the stream, the server is asked to
go on from the text that had come.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from deepseek_client.effects import Flow, Opened, Sleep
from deepseek_client.errors import APIStatusError, DeepSeekError, IdleTimeout, StreamTruncatedError
from deepseek_client.exchange import Attempts, Exchange
from deepseek_client.going_on import Sent, continued, replayed
from deepseek_client.readings import Reading
from deepseek_client.retries import is_retryable
from deepseek_client.sse import ServerSentEvent
from deepseek_client.types.base import Seam

_NOT_HERE = frozenset({400, 404, 405, 409, 410, 422, 501})
"""Refusals of one way to go on, after which another one may work."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """An event's id, as our gateway gives it: a stream, and the event's number in it."""

    stream: str
    number: int

    @property
    def text(self) -> str:
        return f"{self.stream}:{self.number}"


@dataclass(frozen=True, slots=True)
class Resumed:
    """A stream that goes on."""

    opened: Opened
    how: Literal["replay", "prefix"]


class Resumption:
    """One stream's way to go on after a break.

    Args:
        exchange: the client's.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.seams: tuple[Seam, ...] = ()
        self._exchange = exchange
        self._sent: Sent | None = None
        self._mark: _Mark | None = None
        self._awaited: _Mark | None = None
        self._is_numbered = False

    @property
    def can_replay(self) -> bool:
        """Whether the server has numbered its events."""
        return self._mark is not None

    def begin(self, sent: Sent) -> None:
        """A stream has begun, from its first event."""
        self._sent, self._mark, self._awaited = sent, None, None

    def is_new(self, event: ServerSentEvent) -> bool:
        """Whether an event is to be read; one that had come before the break is not.

        Raises:
            StreamTruncatedError: the server did not go on where it was asked to.
        """
        mark, last = _mark_of(event.id), self._awaited
        if last is not None:
            if mark is not None and mark.stream == last.stream and mark.number <= last.number:
                return False
            self._awaited = None
            if mark is None or mark.stream != last.stream or mark.number != last.number + 1:
                self._mark = None
                raise StreamTruncatedError(f"the server was asked for what follows event {last.text}, and sent another")
        self._mark = mark
        self._is_numbered = self._is_numbered or mark is not None
        return True

    def go_on(self, error: DeepSeekError, attempts: Attempts, reading: Reading[Any, Any]) -> Flow[Resumed | None]:
        """Have the stream go on; None if it cannot, which the error then says in a note."""
        if not _is_break(error):
            return None
        if not self._has_way(error, reading):
            error.add_note(f"not resumed: {self._continued(reading)}")
            return None
        delay = attempts.next_delay_s(error, is_sure=True)
        if delay is None:
            error.add_note("not resumed: no retry is left, or no time")
            return None
        yield Sleep(delay)
        failure: DeepSeekError | str = "no way is left"
        for how, sent in self._ways(error, reading):
            if isinstance(sent, str):
                failure = sent
                break
            try:
                opened = yield from self._exchange.open(sent.path, sent.call, attempts)
            except APIStatusError as refusal:
                failure = refusal
                if refusal.status_code not in _NOT_HERE:
                    break
                self._mark = None
            except DeepSeekError as failed:
                failure = failed
                break
            else:
                self._joined(how, error, reading)
                return Resumed(opened, how)
        error.add_note(f"not resumed: {failure}")
        return None

    def _joined(self, how: Literal["replay", "prefix"], error: DeepSeekError, reading: Reading[Any, Any]) -> None:
        so_far = reading.so_far()
        self.seams += (Seam(how, len(so_far.text) if so_far is not None else 0, error.request_id),)
        self._awaited = self._mark if how == "replay" else None
        if how == "prefix":
            self._mark = None
            reading.begin_part()

    def _has_way(self, error: DeepSeekError, reading: Reading[Any, Any]) -> bool:
        return any(isinstance(sent, Sent) for _, sent in self._ways(error, reading))

    def _ways(
        self, error: DeepSeekError, reading: Reading[Any, Any]
    ) -> Iterator[tuple[Literal["replay", "prefix"], Sent | str]]:
        """The requests that may bring the rest, the better first. Nothing follows where the server itself ended it."""
        if self._mark is not None and self._sent is not None and not isinstance(error, APIStatusError):
            yield "replay", replayed(self._sent, self._mark.text)
        if not reading.is_complete:
            yield "prefix", self._continued(reading)

    def _continued(self, reading: Reading[Any, Any]) -> Sent | str:
        assert self._sent is not None, "a stream that broke had begun"
        return continued(self._exchange.settings, self._sent, reading.so_far(), is_ours=self._is_numbered)


def _is_break(error: DeepSeekError) -> bool:
    """Whether an answer that ended so may go on: a lost or silent connection, or a server that gave up."""
    if isinstance(error, APIStatusError):
        return is_retryable(error)
    return isinstance(error, StreamTruncatedError | IdleTimeout)


def _mark_of(text: str | None) -> _Mark | None:
    stream, _, number = (text or "").rpartition(":")
    return _Mark(stream, int(number)) if stream and number.isascii() and number.isdigit() else None
