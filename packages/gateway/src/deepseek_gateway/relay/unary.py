"""An answer in one piece."""

import time
from typing import Literal

from deepseek_gateway.edge.respond import send_at_once, send_body
from deepseek_gateway.edge.watch import QuietError
from deepseek_gateway.errors import ApiError, UpstreamCutError
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.limits.headers import rate_limit_headers
from deepseek_gateway.relay.exchange import Exchange, ExchangeParts, send_failure
from deepseek_gateway.relay.request import BYTES_PER_TOKEN
from deepseek_gateway.relay.settlement import Ending
from deepseek_gateway.relay.usage_tap import usage_of_body


class UnaryExchange(Exchange):
    """Relays one body."""

    def __init__(self, parts: ExchangeParts) -> None:
        super().__init__(parts)
        self._body: bytes | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._counts: TokenCounts | None = None

    async def relay(self) -> None:
        """Wait for the whole answer, then send it."""
        began_s = time.monotonic()
        while self._body is None:
            try:
                await self.parts.watch.reading(self.opening())
                await self._gather(watched=True)
            except QuietError:
                idle_limit_s = self.parts.settings.upstream_idle_timeout_s
                if time.monotonic() - began_s >= idle_limit_s:
                    raise UpstreamCutError(f"the engine did not answer within {idle_limit_s:g} s") from None
        if self.parts.ticket is not None:
            await self.admitted()
        answer = self.parts.call.answer
        body = self._body
        # The books are closed before the answer leaves: a crash after it must find them closed.
        if answer.status == 200:
            self._counts, reason = usage_of_body(body)
            if self.stages is not None:
                body = self.stages.body(body)
                reason = self.stages.ended.reason if self.stages.ended is not None else reason
            nothing_said = "unknown" if self.parts.request.dialect.generates else "answered"
            ending = Ending("finished", reason or nothing_said, 200)
        else:
            body = self.relayed(answer.status, body)
            ending = Ending("failed", "rejected", answer.status)
        await self.close_books(ending)
        parts, allowance = self.parts, self.parts.settlement.allowance
        if parts.headers:  # of limits: what was held and not used is free again, so they say what is left now
            parts.headers.update(rate_limit_headers(allowance.limiter.standings(allowance.reservation)))
        self.has_begun = True
        kind = answer.content_type.encode("latin-1")
        if not send_at_once(parts.send, answer.status, body, kind, parts.headers):
            await parts.watch.sending(send_body(parts.send, answer.status, body, kind, parts.headers))

    async def drain(self) -> None:
        """Read the rest of the body for its usage."""
        await self._gather(watched=False)

    def usage(self) -> tuple[TokenCounts, Literal["exact", "estimated"]]:
        """The body's usage; without one, an estimate by its size."""
        call = self.parts.call
        if self._body is None:
            return TokenCounts(), "exact" if call.attempt == 0 else "estimated"
        if call.answer.status != 200 or not self.parts.request.dialect.is_billed:
            return TokenCounts(), "exact"
        counts = self._counts or usage_of_body(self._body)[0]
        if counts is not None:
            return counts, "exact"
        return TokenCounts(self.parts.request.prompt.estimate, len(self._body) // BYTES_PER_TOKEN), "estimated"

    async def fail(self, error: ApiError) -> None:
        """An error body, unless the answer is on its way."""
        if not self.has_begun:
            self.has_begun = True
            self.parts.settlement.context.status = error.status
            await send_failure(self.parts, error)

    async def end(self) -> None:
        """Nothing to do: a body has said how long it is."""

    async def _gather(self, *, watched: bool) -> None:
        """Read the body to its end; a wait that ends early loses nothing that was read."""
        call, limit = self.parts.call, self.parts.settings.max_response_bytes
        answer = call.answer
        while self._body is None:
            part = answer.taken()
            if not part:
                read = call.read()
                part = await (self.parts.watch.reading(read) if watched else read)
            self._parts.append(part)
            self._size += len(part)
            if self._size > limit:
                raise UpstreamCutError(f"the engine's answer is larger than {limit} bytes (GATEWAY_MAX_RESPONSE_BYTES)")
            if not part or answer.is_whole:
                self._body = b"".join(self._parts)
