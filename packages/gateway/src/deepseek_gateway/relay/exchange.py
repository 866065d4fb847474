"""One admitted request, from the engine it goes to until its books are closed.

An exchange ends in exactly one way (`Ending`), and always settles. `stream.py` and `unary.py` are the two kinds.
"""

import abc
import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Literal

from starlette.types import Send

from deepseek_gateway.admit.errors import NotAdmittedError
from deepseek_gateway.edge.error_shape import ErrorShape
from deepseek_gateway.edge.respond import send_error
from deepseek_gateway.edge.watch import CallerGoneError, RequestWatch, SlowCallerError, StoppingError
from deepseek_gateway.errors import ApiError, JournalError, UpstreamError
from deepseek_gateway.foreign import native_refusal
from deepseek_gateway.ledger.ledger import Ledger
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.limits.headers import rate_limit_headers
from deepseek_gateway.relay.model_name import renamed
from deepseek_gateway.relay.request import GenerationRequest
from deepseek_gateway.relay.settlement import Ending, Settlement
from deepseek_gateway.relay.stages import Stage, StageChain
from deepseek_gateway.settings import Settings
from deepseek_gateway.upstream.call import UpstreamCall

logger = logging.getLogger(__name__)

CLIENT_GONE_STATUS = 499
"""nginx's status for a caller that left: it is logged and kept, never sent."""


@dataclass(frozen=True, slots=True)
class ExchangeParts:
    """What an exchange works with. `ticket` is the journal's, if the answer must wait for the disk."""

    request: GenerationRequest
    settings: Settings
    call: UpstreamCall
    watch: RequestWatch
    settlement: Settlement
    ledger: Ledger
    ticket: int | None
    send: Send
    stages: tuple[Stage, ...] = ()

    @property
    def errors(self) -> ErrorShape:
        """How the caller's dialect writes errors."""
        return self.settlement.context.errors


class Exchange(abc.ABC):
    """See the module. `run` is called once."""

    def __init__(self, parts: ExchangeParts) -> None:
        self.parts = parts
        self._opening: asyncio.Task[None] | None = None
        self.has_begun = False
        self.stages = StageChain(parts.stages) if parts.stages else None

    @abc.abstractmethod
    async def relay(self) -> None:
        """Bring the engine's answer to the caller, and settle."""

    @abc.abstractmethod
    async def drain(self) -> None:
        """Read the rest of an aborted answer for its usage."""

    @abc.abstractmethod
    def usage(self) -> tuple[TokenCounts, Literal["exact", "estimated"]]:
        """What is known of the usage by now."""

    @abc.abstractmethod
    async def fail(self, error: ApiError) -> None:
        """Tell the caller that its answer failed. One that has begun goes on until `end`."""

    @abc.abstractmethod
    async def end(self) -> None:
        """End an answer that has begun, and failed."""

    async def run(self) -> None:
        """Relay, and close the books however that ends."""
        call = self.parts.call
        try:
            call.begin()
            await self.relay()
        except CallerGoneError:
            await self._leave(Ending("cancelled", "client_disconnect", CLIENT_GONE_STATUS))
        except SlowCallerError:
            await self._leave(Ending("cancelled", "slow_client", CLIENT_GONE_STATUS))
        except StoppingError:
            self.parts.watch.allow_last_words()
            stopping = ApiError(503, "the gateway stops", code="shutting_down", headers={"retry-after": "5"})
            await self._cut_off(stopping, "shutdown")
        except NotAdmittedError as error:
            await self._cut_off(refusal_at_the_gate(error), error.code)
        except UpstreamError as error:
            await self._cut_off(answer_of(error, has_begun=self.has_begun), "upstream_error")
        except JournalError as error:
            await self._cut_off(ApiError(503, str(error), headers={"retry-after": "5"}), "journal_error")
        finally:
            self.settle(Ending("failed", "internal_error", 500))
            if (opening := self._opening) is not None:
                if not opening.done():
                    opening.cancel()
                    await asyncio.wait((opening,))
                elif not opening.cancelled():
                    opening.exception()  # seen, also when nobody waited for it any more
            call.finish()

    async def opening(self) -> None:
        """Ends when the engine's answer begins. The wait may end early; opening goes on.

        Mostly an engine and a connection are free, and there is nothing to do but wait. All else is a task's.
        """
        if self._opening is None and await self.parts.call.opened():
            return
        await asyncio.shield(self._open_on())

    async def admitted(self) -> None:
        """Wait until the journal's admission is on the disk, where nothing may leave before: see `journal_wait`."""
        if self.parts.ticket is not None:
            await self.parts.ledger.durable(self.parts.ticket)

    def limit_headers(self) -> dict[str, str]:
        """How the limits stand: what was held and not used is free again once the books are closed."""
        allowance = self.parts.settlement.allowance
        reservation = allowance.reservation
        is_over = reservation.is_settled
        return rate_limit_headers(allowance.limiter.standings(reservation) if is_over else reservation.standings)

    async def close_books(self, ending: Ending) -> None:
        """Settle, and wait until all know it: whoever sees the answer's end finds its place free, and its bill."""
        self.settle(ending)
        await self.parts.settlement.allowance.settled()

    def settle(self, ending: Ending) -> None:
        """Close the books with what is known now; the first time counts."""
        if self.parts.settlement.is_settled:
            return
        tokens, accuracy = self.usage()
        call = self.parts.call
        self.parts.settlement.settle(ending, tokens, accuracy, call.attempt, call.upstream_name, call.attempts)

    def relayed(self, status: int, body: bytes) -> bytes:
        """An engine's error body, for the caller: in its dialect, and with its own name for the model."""
        call, asked = self.parts.call, self.parts.settlement.admission.model
        served = next((each.model for each in reversed(call.attempts) if each.upstream == call.upstream_name), None)
        if asked is not None and served is not None:
            body = renamed(body, served, asked)
        return self.parts.errors.relayed(status, native_refusal(status, body))

    async def refuse_tokens(self, error: ApiError, reason: str) -> None:
        """End a stream that can hold no more of a limit."""
        await self._cut_off(error, reason)

    async def stop_engine(self) -> None:
        """End the engine's work on an answer that a stage ended; its exact usage is known then."""
        await self._end_upstream()

    async def _leave(self, ending: Ending) -> None:
        self.parts.settlement.context.status = ending.http_status
        await self._end_upstream()
        self.settle(ending)

    async def _cut_off(self, error: ApiError, reason: str) -> None:
        ending = Ending("failed", reason, error.status)
        async with asyncio.TaskGroup() as group:  # the engine stops now, however slowly the caller reads the error
            ended = group.create_task(self._end_upstream())
            if reason != "shutdown":  # then there may be no time left to tell it after
                await ended
                await self.close_books(ending)
            with contextlib.suppress(CallerGoneError, SlowCallerError, StoppingError):
                await self.fail(error)
        await self.close_books(ending)
        with contextlib.suppress(CallerGoneError, SlowCallerError, StoppingError):
            await self.end()

    async def _end_upstream(self) -> None:
        """Abort at the engine and read on to the exact usage, for `abort_drain_s` at most."""
        opening = None if self._opening is None and self.parts.call.is_open else self._open_on()
        if opening is not None and opening.done() and (opening.cancelled() or opening.exception() is not None):
            return
        aborting = asyncio.create_task(self._abort())
        try:
            async with asyncio.timeout(self.parts.settings.abort_drain_s):
                if opening is not None:
                    await opening
                await self.drain()
        except (UpstreamError, TimeoutError) as error:
            logger.debug("request %s: no exact usage: %s", self.parts.settlement.admission.request_id, error)
        except asyncio.CancelledError:
            if opening is None or not opening.cancelled():
                raise
        finally:
            aborting.cancel()
            await asyncio.gather(aborting, return_exceptions=True)

    async def _abort(self) -> None:
        if not await self.parts.call.abort():
            if self._opening is not None:
                self._opening.cancel()
            self.parts.call.close()

    def _open_on(self) -> asyncio.Task[None]:
        """The task that opens, whatever it takes."""
        if self._opening is None:
            self._opening = asyncio.create_task(self.parts.call.open())
        return self._opening


def answer_of(error: UpstreamError, *, has_begun: bool) -> ApiError:
    """What a caller is told when its engine fails; addresses stay in the log."""
    logger.warning("%s", error)
    if has_begun:
        return ApiError(502, "the engine's answer broke off", code="upstream_cut")
    if error.is_unavailable:
        wait_s = max(1, round(error.retry_after_s or 1))
        message = f"no engine takes requests now: try again in {wait_s} s"
        return ApiError(503, message, code="upstream_unavailable", headers={"retry-after": str(wait_s)})
    headers = {"retry-after": "1"}
    return ApiError(502, "the engine failed", code="upstream_error", headers=headers)


def refusal_at_the_gate(error: NotAdmittedError) -> ApiError:
    """What a caller is told whose request was not let through to an engine."""
    wait_s = max(1, round(error.retry_after_s or 1))
    return ApiError(503, str(error), code=error.code, headers={"retry-after": str(wait_s)})


async def send_failure(parts: ExchangeParts, error: ApiError) -> None:
    """An error body, within the watch over the caller."""
    await parts.watch.sending(send_error(parts.send, error, parts.errors))
