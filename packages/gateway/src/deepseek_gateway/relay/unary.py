"""An answer in one piece."""

import time
from typing import Any, Literal, cast

import orjson

from deepseek_gateway.edge.respond import send_at_once, send_body
from deepseek_gateway.edge.watch import QuietError
from deepseek_gateway.errors import ApiError, UpstreamCutError
from deepseek_gateway.foreign import Fields, error_in, json_object
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.relay.exchange import Exchange, ExchangeParts, send_failure
from deepseek_gateway.relay.request import size_of_prompt
from deepseek_gateway.relay.settlement import Ending
from deepseek_gateway.relay.usage_tap import usage_of_body

_TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls")


class UnaryExchange(Exchange):
    """Relays one body."""

    def __init__(self, parts: ExchangeParts) -> None:
        super().__init__(parts)
        self._body: bytes | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._counts: TokenCounts | None = None
        self._is_estimated = False
        self._is_none = False

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
        status, body, kind = self.parts.call.answer.status, self._body, "application/json"
        # The books are closed before the answer leaves: a crash after it must find them closed.
        if status == 200:
            status, body, ending = self._answered(body)
            if not self.parts.request.dialect.generates:  # all else was read as JSON
                kind = self.parts.call.answer.content_type
        else:
            body, ending = self.relayed(status, body), Ending("failed", "rejected", status)
        await self.close_books(ending)
        self.has_begun = True
        parts, headers, content_type = self.parts, self.limit_headers(), kind.encode("latin-1")
        if not send_at_once(parts.send, status, body, content_type, headers):
            await parts.watch.sending(send_body(parts.send, status, body, content_type, headers))

    def _answered(self, body: bytes) -> tuple[int, bytes, Ending]:
        """An answer as the caller gets it: its status, its body, and how it ended.

        Raises:
            UpstreamCutError: it is none.
        """
        self._counts, reason = usage_of_body(body)
        generates = self.parts.request.dialect.generates
        if self._counts is None and generates:
            answer = json_object(body)
            self._is_none = answer is None or error_in(answer, 502) is not None
            if answer is None:
                raise UpstreamCutError("the engine's answer is no JSON object")
            if self._is_none:
                return 502, self.relayed(502, body), Ending("failed", "upstream_error", 502)
            self._counts, self._is_estimated = self._estimate(answer), True
            body = _with_usage(answer, self._counts)
        if self.stages is not None:
            body = self.stages.body(body)
            reason = self.stages.ended.reason if self.stages.ended is not None else reason
        return 200, body, Ending("finished", reason or ("unknown" if generates else "answered"), 200)

    async def drain(self) -> None:
        """Read the rest of the body for its usage."""
        await self._gather(watched=False)

    def usage(self) -> tuple[TokenCounts, Literal["exact", "estimated"]]:
        """The body's usage; without one, an estimate by its texts."""
        call = self.parts.call
        if self._body is None:
            return TokenCounts(), "exact" if call.attempt == 0 else "estimated"
        if self._is_none or call.answer.status != 200 or not self.parts.request.dialect.is_billed:
            return TokenCounts(), "exact"
        counts = self._counts or usage_of_body(self._body)[0]
        if counts is not None:
            return counts, "estimated" if self._is_estimated else "exact"
        return self._estimate(json_object(self._body) or {}), "estimated"

    def _estimate(self, answer: Fields) -> TokenCounts:
        """Tokens of prompt and answer where the server tells none."""
        prompt = self.parts.request.prompt.estimate
        return TokenCounts(
            prompt, size_of_prompt(texts_of(answer)).estimate if self.parts.request.dialect.generates else 0
        )

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


def texts_of(answer: Fields) -> list[Any]:
    """What tokens were made for."""
    choices: Any = answer.get("choices")
    texts: list[Any] = [answer.get("text")]
    for choice in cast("list[Any]", choices) if isinstance(choices, list) else ():
        made = cast("Fields", choice) if isinstance(choice, dict) else {}
        message: Any = made.get("message")
        texts.append(made.get("text"))
        texts.extend(cast("Fields", message).get(name) for name in _TEXTS if isinstance(message, dict))
    return texts


def _with_usage(answer: Fields, counts: TokenCounts) -> bytes:
    """An answer that tells what its caller is billed."""
    usage = {"prompt_tokens": counts.prompt, "completion_tokens": counts.completion, "total_tokens": counts.total}
    return orjson.dumps({**answer, "usage": usage})
