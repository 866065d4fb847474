"""Hold what a request needs under its limits. Where that hangs on the estimate of its prompt, the prompt is counted.

An estimate decides nothing near a limit: a refusal that a smaller prompt would not have met, and a prompt that could be
so much longer than estimated that a limit would not hold, both wait for the tokenizer of the model's engine. Everything
else, which is nearly all, is let in by the estimate and settled to the engine's count.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deepseek_gateway.limits.limiter import Limiter, Reservation, Shortage, refusal
from deepseek_gateway.limits.rulebook import Plan
from deepseek_gateway.limits.rules import Amounts, Ask, LimitReached, LimitsUnavailable
from deepseek_gateway.limits.windows import window_of
from deepseek_gateway.money.prices import Price
from deepseek_gateway.relay.allowance import SliceSizes, ask_of
from deepseek_gateway.relay.request import GenerationRequest

LEAST_SHARE = 10
"""No text has fewer tokens than its estimate by this factor, as 30 bytes a token: below it no count helps."""

CountPrompt = Callable[[], Awaitable[int | None]]
"""Asks an engine for the tokens of the request's prompt; None where none can tell in time."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Under what a request is let in. `price` is None where the model has none."""

    limiter: Limiter
    plan: Plan
    price: Price | None
    sizes: SliceSizes

    async def hold(
        self, request_id: str, request: GenerationRequest, count: CountPrompt
    ) -> tuple[GenerationRequest, Reservation]:
        """Hold what a request needs to begin.

        Returns:
            The request, with its prompt counted where that was needed; and what is held.

        Raises:
            LimitReached: a rule has no room.
            LimitsUnavailable: a rule cannot be checked now.
        """
        ask = self._ask(request)
        try:
            reservation = await self.limiter.admit(request_id, self.plan, ask)
        except LimitReached as limit:
            if request.prompt.is_exact or not _hangs_on_prompt(limit, ask, request):
                raise
            tokens = await count()
            if tokens is None:
                raise
            request = request.counted(tokens)
            return request, await self.limiter.admit(request_id, self.plan, self._ask(request))
        try:
            if self._may_exceed(reservation, request, ask) and (tokens := await count()) is not None:
                request = request.counted(tokens)
                await self._hold_counted(reservation, request)
        except BaseException:
            self.limiter.settle(reservation, Amounts())
            raise
        return request, reservation

    def _ask(self, request: GenerationRequest) -> Ask:
        return ask_of(request, self.plan, self.price, self.sizes)

    def _may_exceed(self, reservation: Reservation, request: GenerationRequest, ask: Ask) -> bool:
        """Whether the prompt may be longer than its estimate by more than what is left of a limit.

        What is held for the answer beyond the least of it is left, too: a stream extends, and `clamp_of` cuts.
        """
        tokens = request.prompt.most - request.prompt.estimate
        nano = 0 if self.price is None else self.price.estimate_nano(tokens, 0)
        left, least = reservation.left, ask.least
        return (self.plan.tightest_tokens is not None and tokens > left.tokens + reservation.tokens - least.tokens) or (
            self.plan.tightest_nano is not None and nano > left.nano + reservation.nano - least.nano
        )

    async def _hold_counted(self, reservation: Reservation, request: GenerationRequest) -> None:
        """Hold what a prompt needs beyond its estimate.

        Raises:
            LimitReached: there is no room for it.
            LimitsUnavailable: a rule cannot be checked now.
        """
        plan, ask = self.plan, self._ask(request)
        more = Amounts(
            0 if plan.tightest_tokens is None else max(0, ask.least.tokens - reservation.tokens),
            0 if plan.tightest_nano is None else max(0, ask.least.nano - reservation.nano),
        )
        if not any(more):
            return
        got = await self.limiter.extend(reservation, more)
        if got.tokens >= more.tokens and got.nano >= more.nano:
            return
        reached = self.limiter.reached(reservation)
        if isinstance(reached, LimitsUnavailable):
            raise reached
        rule = reached.rule
        held = reservation.nano if rule.kind.unit == "money" else reservation.tokens
        needed = ask.least.nano if rule.kind.unit == "money" else ask.least.tokens
        period = rule.kind.period
        window = None if period is None else window_of(period, rule.time_zone, time.time())
        wait_s = None if period is not None or needed > rule.limit else (needed - held) * 60 / rule.limit
        error = refusal([Shortage(rule, needed, held, wait_s, window)], ask)
        error.standings = reservation.standings
        raise error


def _hangs_on_prompt(limit: LimitReached, ask: Ask, request: GenerationRequest) -> bool:
    """Whether the rule that refused has room for the answer and for the shortest prompt of so many bytes."""
    if limit.rule.kind.unit == "requests":
        return False
    left = next((standing.remaining for standing in limit.standings if standing.rule is limit.rule), 0)
    if limit.rule.kind.unit == "money":
        return left > 0
    estimate = request.prompt.estimate
    return left >= ask.least.tokens - estimate + estimate // LEAST_SHARE
