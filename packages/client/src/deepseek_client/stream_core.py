"""The life of one stream, as flows: connect, read, decide when it is over, and what a break in it means. No I/O."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic

from deepseek_client.effects import Flow, Opened, Read, Sleep, let_go
from deepseek_client.error_mapping import error_of_event, excerpt, request_id_of
from deepseek_client.errors import (
    APIConnectionError,
    APITimeoutError,
    DeepSeekError,
    EmptyResponseError,
    ResponseValidationError,
    StreamClosedError,
    StreamProtocolError,
    StreamTruncatedError,
)
from deepseek_client.exchange import Attempts, Exchange, describe
from deepseek_client.prices import Entry
from deepseek_client.readings import AnswerT, ItemT, Reading
from deepseek_client.resuming import Resumption, Sent
from deepseek_client.settings import Timeout
from deepseek_client.sse import ServerSentEvent, SSEError, SSEParser, begins_as_events
from deepseek_client.types.base import AnswerModel, Origin, Seam

DRAIN_S = 0.1
"""How long to wait, after `[DONE]`, for the end of the body that lets the connection be used again."""

_SNIFF_BYTES = 512


@dataclass(frozen=True, slots=True)
class Connected(Generic[ItemT, AnswerT]):
    """A stream that has begun, how its events are to be read, the model that was asked for, and the request."""

    opened: Opened
    reading: Reading[ItemT, AnswerT]
    model: str | None
    sent: Sent


class StreamCore(Generic[ItemT, AnswerT]):
    """One stream. `fill` until `items` holds something or `is_over`; `take` what it holds.

    Until the first item has come, a failure that a retry may help starts the stream again; after that, it is raised
    with what had arrived as its `snapshot`.

    Args:
        connect: the flow that starts the stream, or starts it again.
        exchange: the client's.
        timeout: the call's limits.
        reading: what `answer` reports from before the stream has begun.
        enter: counts the answer when it is over, and tells its price.
        resume: have it go on after a break, where the server can.
    """

    def __init__(
        self,
        connect: Callable[[Attempts], Flow[Connected[ItemT, AnswerT]]],
        exchange: Exchange,
        timeout: Timeout,
        reading: Reading[ItemT, AnswerT],
        enter: Callable[[Entry], Decimal | None] = lambda _entry: None,
        *,
        resume: bool = False,
    ) -> None:
        self.items: deque[ItemT] = deque()
        self.is_over = False
        self.headers: Mapping[str, str] = {}
        self.reading = reading
        self.cost: Decimal | None = None
        self._enter = enter
        self._model: str | None = None
        self._connect = connect
        self._timeout = timeout
        self._clock = exchange.clock
        self._exchange = exchange
        self._resumption = Resumption(exchange) if resume else None
        self._attempts: Attempts | None = None
        self._opened: Opened | None = None
        self._failure: DeepSeekError | None = None
        self._parser = SSEParser()
        self._elapsed_s: float | None = None
        self._head_s = 0.0
        self._has_arrived = False
        self._has_data = False
        self._has_comment = False
        self._is_done = False
        self._has_items = False
        self._is_cut = False
        self._is_counted = False
        self._sniffed = b""

    @property
    def body(self) -> Any | None:
        """The driver's handle of a response that is still open."""
        return self._opened.body if self._opened is not None else None

    @property
    def is_begun(self) -> bool:
        """Whether the request has been sent, or never will be."""
        return self._opened is not None or self.is_over

    @property
    def request_id(self) -> str | None:
        """The id under which the server's logs know the request."""
        return request_id_of(self.headers)

    @property
    def seams(self) -> tuple[Seam, ...]:
        """Where it broke and went on."""
        return self._resumption.seams if self._resumption is not None else ()

    @property
    def retries_taken(self) -> int:
        """How often the request has been sent again."""
        return self._attempts.retries_taken if self._attempts is not None else 0

    @property
    def elapsed_s(self) -> float | None:
        """From the call to now, or to the stream's end; None before it has begun."""
        if self._elapsed_s is not None or self._attempts is None:
            return self._elapsed_s
        return self._attempts.elapsed_s()

    def answer(self) -> AnswerT:
        """All that has arrived, as the answer of a plain call."""
        answer = self.reading.answer()
        if isinstance(answer, AnswerModel):
            answer.with_origin(Origin(self.request_id, self.retries_taken, self.elapsed_s, self.seams))
            answer.with_cost(self.cost)
        return answer

    def take(self) -> ItemT:
        """The next item."""
        return self.items.popleft()

    def give_back(self, item: ItemT) -> None:
        """Make an item that was taken the next one again."""
        self.items.appendleft(item)

    def start(self) -> Flow[None]:
        """Send the request, with retries; returns when the response has begun.

        Raises:
            DeepSeekError: it never began.
        """
        attempts = self._attempts = self._attempts or self._exchange.attempts(
            self._timeout, resume=self._resumption is not None
        )
        connected = yield from self._connect(attempts)
        if self.is_over:  # closed meanwhile
            yield from let_go(connected.opened)
            return
        self.reading, self._model = connected.reading, connected.model
        self.headers = connected.opened.headers
        self._has_arrived = False
        if self._resumption is not None:
            self._resumption.begin(connected.sent)
        self._begin(connected.opened, attempts)

    def _begin(self, opened: Opened, attempts: Attempts) -> None:
        """Read a response from its first byte on."""
        self._opened = opened
        self._parser = SSEParser(on_comment=self._note_comment)
        self._head_s = self._clock() - attempts.sent_at
        self._has_data = self._has_comment = self._is_done = False
        self._sniffed = b""

    def fill(self) -> Flow[None]:
        """Read until there is an item, or the stream is over.

        Raises:
            DeepSeekError: the stream broke; with `snapshot`.
        """
        waiting_since = self._clock()
        while not self.items and not self.is_over:
            if self._failure is not None:
                self._note_over()
                raise self._failure
            if self._opened is None:
                yield from self.start()
                waiting_since = self._clock()
                if self.is_over:  # closed by another thread or task meanwhile
                    return
            opened = self._opened
            assert opened is not None
            try:
                data: bytes = yield self._next_read(opened, waiting_since)
                if self._consume(data):
                    waiting_since = self._clock()
            except GeneratorExit:  # the caller's task was cancelled, and its read with it: nothing is in flight
                if opened.place is not None:
                    opened.place.leave()
                raise
            except DeepSeekError as error:
                yield from self.release()
                yield from self._recover(error)
                waiting_since = self._clock()
            else:
                if self._is_done or not data:
                    yield from self._finish()
        if self.is_over:  # also when it was closed from elsewhere while it was sent again
            yield from self.release()

    def release(self) -> Flow[None]:
        """Let go of the response; the server sees a disconnect if it was not done."""
        opened, self._opened = self._opened, None
        if opened is not None:
            yield from let_go(opened)

    def close(self) -> Flow[None]:
        """End the stream, whatever is left of it."""
        self._is_cut = self._is_cut or not (self.is_over or self.reading.is_complete)
        self._note_over()
        self.items.clear()
        yield from self.release()

    def abandon(self) -> None:
        """As `close`, from a finaliser: nobody reads this stream any more."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.body.abandon()
            if opened.place is not None:
                opened.place.leave()

    def _account(self) -> None:
        """Count what the server says that the answer took; once, whatever happens to the stream then."""
        if self.reading.usage is not None and not self._is_counted:
            self._is_counted = True
            model, created = self.reading.origin
            self.cost = self._enter(Entry(self.reading.usage, self._model or model, created))

    def whole_answer(self) -> AnswerT:
        """The answer of a stream that is over.

        Raises:
            StreamClosedError: it was closed before its end; with `snapshot`.
            DeepSeekError: it had broken; with `snapshot`.
        """
        if self._failure is not None and not self._is_cut:
            raise self._failure
        if self._is_cut:
            error = StreamClosedError("the stream was closed before its end", request_id=self.request_id)
            error.snapshot = self.answer()
            raise error
        return self.answer()

    @property
    def _misses_usage(self) -> bool:
        """Whether the token counts were lost with the stream's last event, and can be had."""
        return self.reading.usage is None and self._resumption is not None and self._resumption.can_replay

    def _note_over(self) -> None:
        if not self.is_over:
            self._elapsed_s = self.elapsed_s
            self._account()
        self.is_over = True

    def _note_comment(self, text: str) -> None:
        self._has_comment = True
        self.items.extend(self.reading.comment(text))

    def _next_read(self, opened: Opened, waiting_since: float) -> Read:
        """The next read and its limit. The clock runs from the caller's wish for data, or from the last data event."""
        if self._has_data:
            phase, limit = "idle", self._timeout.idle_s
        else:
            phase, limit = "first_token", self._timeout.first_token_s
            waiting_since -= self._head_s
        deadline = None if limit is None else waiting_since + limit
        total = self._attempts.deadline if self._attempts is not None else None
        if total is not None and (deadline is None or total < deadline):
            return Read(opened.body, total, "total")
        return Read(opened.body, deadline, phase)

    def _consume(self, data: bytes) -> bool:
        """Take the bytes of one read; tells whether they completed an event with data. Empty is the end of the body."""
        if not data:
            self._check_end()
            return False
        if len(self._sniffed) < _SNIFF_BYTES:
            self._sniffed += data[:_SNIFF_BYTES]
        try:
            events = self._parser.feed(data)
        except SSEError as error:
            raise StreamProtocolError(f"the stream cannot be read: {error}") from error
        resumption = self._resumption
        events = [event for event in events if event.data and not event.data.isspace()]
        for event in events:
            if not self._is_done and (resumption is None or resumption.is_new(event)):
                self._read_event(event)
                self._has_data = self._has_arrived = True
        return bool(events)

    def _read_event(self, event: ServerSentEvent) -> None:
        if event.data == "[DONE]":
            self._is_done = True
            return
        if event.event == "error":
            error = error_of_event(event.data, self.headers, secret=self._exchange.secret)
            assert error is not None, "an event named error always gives one"
            raise error
        try:
            items = self.reading.read(event.data)
        except ValueError as invalid:
            error = error_of_event(event.data, self.headers, secret=self._exchange.secret, is_error_event=False)
            raise error or ResponseValidationError(
                f"an event of the stream is not what the contract names: {describe(invalid)}; "
                f"it begins: {excerpt(event.data.encode(), self._exchange.secret)}"
            ) from invalid
        self.items.extend(items)
        self._has_items = self._has_items or bool(items)
        self._is_done = self.reading.is_over

    def _check_end(self) -> None:
        """The body is over without `[DONE]`.

        Raises:
            DeepSeekError: so is the answer, and it was not whole.
        """
        try:
            self._parser.close()
        except SSEError as error:
            raise StreamProtocolError(f"the stream cannot be read: {error}") from error
        if self.reading.is_complete and not self._misses_usage:
            return
        if self._has_arrived:
            raise StreamTruncatedError("the stream ended before the answer did: no [DONE], and no finish_reason")
        if not self._sniffed.strip():
            raise EmptyResponseError("the server began a stream and ended it without a byte of data")
        if not self._has_data and not self._has_comment and not begins_as_events(self._sniffed):
            kind = self.headers.get("content-type", "no content type")
            raise StreamProtocolError(
                f"asked for a stream of events, got {kind}: {excerpt(self._sniffed, self._exchange.secret)}"
            )
        raise StreamTruncatedError("the stream ended before the answer did: no [DONE], and no finish_reason")

    def _finish(self) -> Flow[None]:
        """After `[DONE]`, read what is left of the body, for a moment: then the connection can be used again."""
        self._end()
        opened = self._opened
        if opened is not None and self._is_done:
            deadline = self._clock() + DRAIN_S
            try:
                while (yield Read(opened.body, deadline, "idle")):
                    pass
            except APIConnectionError:
                pass  # the answer is whole; only the connection is lost
        yield from self.release()

    def _end(self) -> None:
        """The answer is whole."""
        self._note_over()
        self.items.extend(self.reading.end())

    def _recover(self, error: DeepSeekError) -> Flow[None]:
        """A read failed and the response is closed: start again, or see that nothing is missing, or raise."""
        if self.is_over:
            return  # closed from elsewhere, which is what ended the read
        is_whole = self.reading.is_complete and isinstance(error, APIConnectionError | StreamTruncatedError)
        if is_whole and not self._misses_usage:
            self._end()
            return
        if isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError):
            broken = StreamTruncatedError(f"the connection broke before the answer was complete: {error.message}")
            broken.__cause__ = error
            error = broken
        error.request_id = error.request_id or self.request_id
        attempts = self._attempts
        assert attempts is not None, "a stream that was read has been started"
        if self._has_items and self._resumption is not None:
            resumed = yield from self._resumption.go_on(error, attempts, self.reading)
            if resumed is not None:
                if resumed.how == "prefix":  # another request; a replay belongs to the first one
                    self.headers = resumed.opened.headers
                self._begin(resumed.opened, attempts)
                return
        if is_whole:
            self._end()
            return
        if not self._has_items:
            delay = attempts.next_delay_s(error)
            if delay is not None:
                yield Sleep(delay)
                return
        attempts.stamp(error)
        self._account()
        error.snapshot = self.answer() if self._has_arrived else None
        self._failure = error  # raised once the items that came before it are taken
