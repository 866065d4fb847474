"""The tokens of a prompt, as an engine of its model counts them."""

import asyncio
from dataclasses import replace
from typing import Any

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.dialects.aside import MISSING, is_error_of_a_model, tokens_counted
from deepseek_gateway.errors import UpstreamError
from deepseek_gateway.metrics import GatewayMetrics
from deepseek_gateway.relay.engine_body import body_maker
from deepseek_gateway.relay.holding import LEAST_SHARE
from deepseek_gateway.relay.prompt_texts import Countable, countable
from deepseek_gateway.relay.request import MAX_ESTIMATE, Dialect, GenerationRequest, read_request
from deepseek_gateway.upstream.call import UpstreamCall
from deepseek_gateway.upstream.plan import CallPlan
from deepseek_gateway.upstream.pool import RouteAsk, UpstreamPool

TIMEOUT_S = 2.0
"""Longer than a tokenizer takes for what is asked; a request whose prompt nobody counted is judged by the estimate."""

MAX_AT_A_TIME = 16
MAX_ANSWER_BYTES = 16 * 2**20
"""/tokenize answers with every token's id."""


class UncountedError(Exception):
    """An engine did not count; `is_refusal`: it does not take the prompt in this form."""

    def __init__(self, *, is_refusal: bool) -> None:
        super().__init__()
        self.is_refusal = is_refusal


class PromptTokens:
    """Asks the engines. They are asked `MAX_AT_A_TIME` at most, and those without /tokenize never twice."""

    def __init__(self, pool: UpstreamPool, metrics: GatewayMetrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._asking = 0

    async def count(self, request: GenerationRequest, route: RouteAsk, key: KeyRecord) -> int | None:
        """Tokens of a request's prompt; None where no engine tells in time, or it is too long to ask.

        The prompt never leaves for the cloud for this, whatever the key allows.
        """
        ours = replace(route, needs=route.needs._replace(allow_cloud=False))
        asked = countable(request)
        if asked is None or self._asking >= MAX_AT_A_TIME or not self._can_count(ours):
            return None
        self._asking += 1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                tokens = await self._sum(asked, ours, key)
        except (UpstreamError, UncountedError, TimeoutError):
            tokens = 0
        finally:
            self._asking -= 1
        # A server that reads other fields than these says 0.
        is_counted = request.prompt.estimate // LEAST_SHARE <= tokens <= MAX_ESTIMATE and tokens > 0
        self._metrics.prompt_counted("counted" if is_counted else "failed")
        return tokens if is_counted else None

    def _can_count(self, route: RouteAsk) -> bool:
        tiers = self._pool.route(route.model, route.needs).tiers
        return any(target.upstream.has_tokenizer and target.upstream.is_up for tier in tiers for target in tier)

    async def _sum(self, asked: Countable, route: RouteAsk, key: KeyRecord) -> int:
        tokens = asked.known
        for bodies in asked.bodies:
            for at, body in enumerate(bodies):
                try:
                    tokens += await self._ask(body, route, key)
                    break
                except UncountedError as error:
                    if not error.is_refusal or at + 1 == len(bodies):
                        raise
        return tokens

    async def _ask(self, body: dict[str, Any], route: RouteAsk, key: KeyRecord) -> int:
        """One look.

        Raises:
            UncountedError: the answer has no count.
            UpstreamError: there is no answer.
        """
        request = read_request(Dialect.TOKENIZE, body)
        body_for = body_maker(request, key, route.model, None)
        call = UpstreamCall(
            self._pool, CallPlan("v1", Dialect.TOKENIZE.path, route, body_for, key.public_id, stream=False)
        )
        try:
            await call.open()
            answer = await call.answer.read_all(MAX_ANSWER_BYTES)
            status = call.answer.status
            if status in MISSING and not is_error_of_a_model(answer) and call.upstream is not None:
                call.upstream.has_tokenizer = False
            tokens = tokens_counted(answer) if status == 200 else None
            if tokens is None:
                raise UncountedError(is_refusal=status in {400, 422})
            return tokens
        finally:
            call.close()
            call.finish()
