"""A streamed answer: events go to the caller as they come."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from deepseek_client.sse import DONE
from deepseek_gateway.edge.respond import end_stream, send_body, send_part, start_stream
from deepseek_gateway.edge.sender import Wire, wire_of
from deepseek_gateway.edge.watch import QuietError
from deepseek_gateway.errors import ApiError, UpstreamCutError
from deepseek_gateway.ledger.ledger import OBSERVE_EVERY_S
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.limits.rules import LimitReached, LimitsUnavailable
from deepseek_gateway.relay.exchange import Exchange, ExchangeParts, send_failure
from deepseek_gateway.relay.frames import FrameSplitter
from deepseek_gateway.relay.refusals import reason_of, refusal_of
from deepseek_gateway.relay.settlement import Ending
from deepseek_gateway.relay.usage_tap import UsageTap, counts_of, spent_of
from deepseek_gateway.upstream.client import is_idle

Result = TypeVar("Result")

TAIL_TIMEOUT_S = 1.0
"""Seconds that an engine has to end its response after [DONE], before its connection is dropped instead of reused."""


class StreamExchange(Exchange):
    """Relays one event stream."""

    def __init__(self, parts: ExchangeParts) -> None:
        super().__init__(parts)
        self._frames = FrameSplitter(parts.settings.max_response_bytes)
        self._tap = UsageTap(parts.request.wish, parts.request.prompt.estimate)
        self._heard_s = self._observe_at_s = time.monotonic()
        self._is_refused = False
        self._has_head = False
        self._wire: Wire | None = None
        self._allowance = parts.settlement.allowance

    async def relay(self) -> None:
        """Open, then copy events until [DONE]."""
        await self._wait_quietly(self.opening)
        await self.admitted()
        answer = self.parts.call.answer
        if answer.status != 200:
            await self._relay_refusal(answer.status)
            return
        self._has_head = True
        try:
            limit = await self._relay_events(self.parts.call.head)
        finally:
            answer.taker = None
        if self._is_cut_short:
            await self._end_early()
        elif limit is not None:
            await self.refuse_tokens(refusal_of(limit), reason_of(limit))
        else:
            await self._finish()

    async def drain(self) -> None:
        """Read to [DONE] for the usage."""
        answer = self.parts.call.answer
        if answer.status != 200:
            self._is_refused = True
            return
        if not self._has_head:
            self._has_head = True
            self._swallow(self.parts.call.head)
        while not self._tap.is_done and (data := await self.parts.call.read()):
            self._swallow(data)
        await self._read_tail()

    def usage(self) -> tuple[TokenCounts, Literal["exact", "estimated"]]:
        """The last usage seen: exact when the engine ended the stream, with [DONE] or with an error."""
        tap = self._tap
        if tap.counts is not None:
            return tap.counts, "exact" if tap.is_done or tap.is_failed else "estimated"
        if tap.content_events == 0 and (self._is_refused or self.parts.call.attempt == 0):
            return TokenCounts(), "exact"
        return self._counts, "estimated"

    def _estimate(self, ahead: int = 0) -> tuple[int, int] | None:
        """Tokens of prompt and answer where the server tells them at the end only: an event is a token."""
        usage = self._tap.estimate(ahead)
        return None if usage is None else spent_of(usage)

    async def fail(self, error: ApiError) -> None:
        """An error body, or an error event once the stream began."""
        watch, send = self.parts.watch, self.parts.send
        if not self.has_begun:
            self.parts.settlement.context.status = error.status
            await send_failure(self.parts, error)
            return
        await watch.sending(send_part(send, self.parts.errors.event(self.parts.errors.body(error))))

    async def end(self) -> None:
        """End the response after an error event."""
        if self.has_begun:
            await self.parts.watch.sending(end_stream(self.parts.send))

    async def _wait_quietly(self, wait: Callable[[], Awaitable[Result]]) -> Result:
        """Wait for the engine, with a comment to the caller at each silence.

        Raises:
            UpstreamCutError: the engine was silent for `upstream_idle_timeout_s`.
        """
        while True:
            try:
                result = await self.parts.watch.reading(wait())
            except QuietError:
                idle_limit_s = self.parts.settings.upstream_idle_timeout_s
                if time.monotonic() - self._heard_s >= idle_limit_s:
                    raise UpstreamCutError(f"the engine was silent for {idle_limit_s:g} s") from None
                await self.admitted()
                await self._send(self.parts.errors.keep_alive)
            else:
                if not (isinstance(result, bytes) and is_idle(result)):  # comments are no sign of work
                    self._heard_s = time.monotonic()
                return result

    async def _relay_events(self, data: bytes) -> LimitReached | LimitsUnavailable | None:
        """Send events on, from these first bytes to where the answer ends; gives the limit that ends it, if any."""
        while True:
            limit = await self._copy(data)
            if limit is not None or self._is_cut_short or self._tap.is_done or self._tap.is_failed:
                return limit
            data = await self._wait_quietly(self.parts.call.read)
            if not data:
                await self._copy(self._closing_frames())
                return None

    async def _copy(self, data: bytes) -> LimitReached | LimitsUnavailable | None:
        """Send on what bytes from the engine complete. Gives the limit that was reached, if one was."""
        tap, out = self._tap, list[bytes]()
        for frame in self._frames.feed(data):
            out.append(tap.pass_on(frame))
            if tap.is_done or tap.is_failed:  # what may follow is no part of the answer
                break
        limit = None if self._is_covered() else await self._extend()
        passed = b"".join(out) if self.stages is None else self.stages.pass_on(out)
        if tap.is_done:
            self._note_first_text()
            # The books are closed before the last byte leaves: a crash after it must find them closed.
            await self.close_books(self._ending())
        if passed:
            await self._send(passed)
        return None if tap.is_done else limit

    def _pass_at_once(self, data: bytes) -> bool:
        """Send an event on in the moment in which it comes, while the task waits on: to wake it costs as much again.

        Returns:
            False for all but a plain event that what is held covers, for a caller that reads: it is left to the task.
        """
        wire, frame = self._wire, self._frames.whole(data)
        if wire is None or frame is None or (piece := self._tap.look(frame)) is None:
            return False
        if not self._covers(piece[2]) or not wire.write_part(piece[0]):
            return False
        self._tap.take(piece)
        self._heard_s = self.parts.watch.since_s = time.monotonic()
        if self._heard_s >= self._observe_at_s:
            self._observe()
        return True

    def _covers(self, usage: dict[str, Any] | None) -> bool:
        """Whether what is held is enough once an event with this usage went to the caller."""
        spent = self._tap.spent or self._estimate(ahead=1) if usage is None else spent_of(usage)
        if spent is not None and self._allowance.covers(*spent):
            return True
        return self._allowance.covers_exactly(TokenCounts(*(spent or ())) if usage is None else counts_of(usage))

    def _is_covered(self) -> bool:
        """Note what was used, from time to time; whether what is held is enough for it."""
        spent = self._tap.spent or self._estimate()
        settlement = self.parts.settlement
        if spent is None or settlement.is_settled:
            return True
        self._observe()
        return self._allowance.covers(*spent) or self._allowance.covers_exactly(self._counts)

    def _observe(self) -> None:
        """Tell the ledger what was used, as often as it takes note."""
        if self._heard_s >= self._observe_at_s and self.parts.settlement.observe(self.parts.call.attempt, self._counts):
            self._observe_at_s = self._heard_s + OBSERVE_EVERY_S

    async def _extend(self) -> LimitReached | LimitsUnavailable | None:
        """Hold more; gives the limit that forbids it."""
        return None if await self._allowance.extend(self._counts) else self._allowance.reached()

    @property
    def _counts(self) -> TokenCounts:
        """What was used, as far as is known."""
        return self._tap.counts or TokenCounts(*(self._estimate() or ()))

    async def _send(self, data: bytes) -> None:
        watch, send = self.parts.watch, self.parts.send
        if not self.has_begun:
            self.has_begun = True
            await watch.sending(start_stream(send, self.limit_headers()))
        await watch.sending(send_part(send, data))
        if self._note_first_text() and self.stages is None and (wire := wire_of(send)) is not None:
            self._wire, self.parts.call.answer.taker = wire, self._pass_at_once

    def _note_first_text(self) -> bool:
        """Note when the first text was there; whether that is now."""
        context = self.parts.settlement.context
        is_first = context.ttft_ms is None and self._tap.content_events > 0
        if is_first:
            context.ttft_ms = context.elapsed_ms()
        return is_first

    async def _finish(self) -> None:
        await self.close_books(self._ending())
        await self.parts.watch.sending(end_stream(self.parts.send))
        if self._tap.is_done:
            await self._read_tail()

    @property
    def _is_cut_short(self) -> bool:
        """Whether a stage has ended the answer."""
        return self.stages is not None and self.stages.ended is not None

    async def _end_early(self) -> None:
        """Stop the engine, close the books, and only then send what a stage wants to be the last."""
        assert self.stages is not None
        assert self.stages.ended is not None
        if not self._tap.is_done:
            await self.stop_engine()
        await self.close_books(self._ending())
        await self._send(self.stages.finish(self._tap.closing(self.stages.ended.last)))
        await self.parts.watch.sending(end_stream(self.parts.send))

    def _ending(self) -> Ending:
        if self.stages is not None and self.stages.ended is not None:
            return Ending("finished", self.stages.ended.reason, 200)
        if self._tap.is_failed:
            return Ending("failed", "upstream_error", 200)
        return Ending("finished", self._tap.finish_reason or "unknown", 200)

    def _closing_frames(self) -> bytes:
        """What is missing at the end of the engine's bytes: some servers send no [DONE].

        Raises:
            UpstreamCutError: the stream ended in the middle of an answer.
        """
        if self._tap.finish_reason is None:
            raise UpstreamCutError("the engine ended its stream in the middle of an answer")
        return DONE

    def _swallow(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._tap.pass_on(frame)

    async def _read_tail(self) -> None:
        """Read the end of the engine's response, so that its connection serves the next request."""
        try:
            async with asyncio.timeout(TAIL_TIMEOUT_S):
                while await self.parts.call.read():
                    pass
        except (TimeoutError, UpstreamCutError):
            self.parts.call.close()

    async def _relay_refusal(self, status: int) -> None:
        """The engine refuses the request itself: its error body is the answer."""
        self._is_refused = True
        answer = self.parts.call.answer
        body = await self.parts.watch.reading(answer.read_all(self.parts.settings.max_response_bytes))
        body = self.relayed(status, body)
        await self.close_books(Ending("failed", "rejected", status))
        if self.has_begun:  # comments went out while the engine was silent
            await self.parts.watch.sending(send_part(self.parts.send, self.parts.errors.event(body)))
            await self.parts.watch.sending(end_stream(self.parts.send))
            return
        await self.parts.watch.sending(send_body(self.parts.send, status, body, headers=self.limit_headers()))
