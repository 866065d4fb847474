"""POST generate, chat/completions and completions: authenticate, admit, relay."""

import functools
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from deepseek_gateway.audit.trail import plain_id
from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.auth.records import Scope as KeyScope
from deepseek_gateway.dialects.aside import read_aside
from deepseek_gateway.dialects.translation import Translated, Translation
from deepseek_gateway.edge.body import read_body
from deepseek_gateway.edge.context import RequestContext, context_of, header
from deepseek_gateway.edge.watch import RequestWatch
from deepseek_gateway.errors import ApiError, JournalError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.guard.guard import WordGuard
from deepseek_gateway.guard.policy import NO_LISTS_VERSION
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.limits.limiter import Reservation
from deepseek_gateway.limits.rules import LimitReached, LimitsUnavailable, Subject
from deepseek_gateway.relay.allowance import Allowance, clamp_of
from deepseek_gateway.relay.engine_body import body_maker
from deepseek_gateway.relay.exchange import Exchange, ExchangeParts
from deepseek_gateway.relay.holding import CountPrompt, Terms
from deepseek_gateway.relay.model_name import ModelNameStage
from deepseek_gateway.relay.refusals import refusal_of
from deepseek_gateway.relay.request import Dialect, GenerationRequest, parse_body, parse_request
from deepseek_gateway.relay.settlement import Ending, Settlement, admission_of
from deepseek_gateway.relay.stages import Stage
from deepseek_gateway.relay.stream import StreamExchange
from deepseek_gateway.relay.unary import UnaryExchange
from deepseek_gateway.replay.rights import Rights
from deepseek_gateway.replay.serve import resume, serve_replayable
from deepseek_gateway.replay.wish import digest_of, replay_wish
from deepseek_gateway.routes.access import authenticate
from deepseek_gateway.routes.asking import check_route, needs_of, route_ask
from deepseek_gateway.routes.screening import Screening, watched_of
from deepseek_gateway.upstream.call import UpstreamCall
from deepseek_gateway.upstream.plan import CallPlan
from deepseek_gateway.upstream.pool import RouteAsk


@dataclass(frozen=True, slots=True)
class GenerationRoute:
    """One dialect under one prefix (`v1` or `beta`): the engine's own, or another maker's that is translated."""

    gateway: Gateway
    dialect: Dialect | Translation
    prefix: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        context = context_of(scope)
        context.route = f"/v1/{self.dialect.path}"
        context.is_traced = True
        context.policy_version = self.gateway.snapshot.version
        context.client_request_id = plain_id(header(scope, b"x-request-id"))
        with self.gateway.house:
            key = await authenticate(self.gateway, scope, KeyScope.INFERENCE)
            settings = self.gateway.settings
            body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout_s)
            wish = replay_wish(scope)
            if wish is not None and wish.resume is not None:
                digest = digest_of(context.route, body) if body else None
                await resume(self.gateway, wish, digest, self._rights(key, context), context, receive, send)
                return
            asked = self._read(body)
            context.errors, context.model = asked.errors, self._model(asked.request, key)
            context.body_bytes = len(body)
            ask = route_ask(self.gateway, scope, asked.request, key, context.model)
            context.policy_version = self.gateway.snapshot.version
            streamed = asked.request.stream
            context.keeping = self.gateway.payloads.begin(context.request_id, key, body, is_stream=streamed)
            if wish is None or (wish.key is None and not asked.request.stream):
                await self._serve(asked, ask, key, context, receive, send)
                return
            exchange = functools.partial(self._serve, asked, ask, key, context)
            digest = digest_of(context.route, body)
            rights = self._rights(key, context)
            await serve_replayable(self.gateway, wish, digest, rights, context, exchange, receive, send)

    def _read(self, body: bytes) -> Translated:
        """The body in the engine's terms.

        Raises:
            ApiError: 400, it is malformed.
        """
        if isinstance(self.dialect, Dialect):
            if not self.dialect.generates:
                return read_aside(self.dialect, body, self.prefix)
            return Translated(parse_request(self.dialect, body), prefix=self.prefix)
        return self.dialect.translate(parse_body(body))

    def _model(self, request: GenerationRequest, key: KeyRecord) -> str | None:
        """The model asked for, or the first that the key may use; None when none is known.

        Raises:
            ApiError: 403, the key may not use it.
        """
        model = request.model
        if not model:
            known = self.gateway.pool.known_models()
            model = next((name for name in known if key.allows_model(name)), next(iter(known), None))
        _require_model(key, model)
        return model

    def _rights(self, key: KeyRecord, context: RequestContext) -> Rights:
        """What the key may have now of what was made earlier."""
        needs = needs_of(key, self.dialect if isinstance(self.dialect, Dialect) else Dialect.CHAT)

        def may_use(model: str | None) -> None:
            _require_model(key, model)
            check_route(self.gateway, model, needs, key)

        return Rights(self.gateway, key, context.request_id, may_use)

    async def _serve(
        self,
        asked: Translated,
        route: RouteAsk,
        key: KeyRecord,
        context: RequestContext,
        receive: Receive,
        send: Send,
    ) -> None:
        gateway, settings, request = self.gateway, self.gateway.settings, asked.request
        subject = subject_of(key, context.model)
        guard = await self._guard(context, key)
        plan = gateway.rules.book.plan(subject, key.limits)
        price = gateway.price(plan, context.model)
        terms = Terms(gateway.limiter, plan, price, gateway.slices)
        screening = Screening(gateway, guard, request, context, key)
        kept = screening.keeper()

        async def count() -> int | None:
            await screening.done()  # no engine sees what is blocked, or what is masked
            return await gateway.prompt_tokens.count(asked.request, route, key)

        request, reservation = await self._hold(terms, context.request_id, request, count)
        longest = None if request.max_tokens is None else request.max_tokens * request.choices
        allowance = Allowance(gateway.limiter, reservation, price, gateway.slices, longest)
        admission = admission_of(context, subject, stream=request.stream)
        settlement = Settlement(gateway.ledger, gateway.metrics, allowance, admission, context)
        try:
            await screening.done()
            is_awaited = plan.tightest_nano is not None or settings.journal_wait == "always"
            try:
                ticket = gateway.ledger.admit(admission, is_awaited=is_awaited)
            except JournalError as error:
                raise ApiError(503, str(error), headers={"retry-after": "5"}) from error
            try:
                span = None if context.span is None else context.span.header
                call_plan = self._plan(asked, route, key, clamp_of(request, reservation, price), span)
                watch = RequestWatch(receive, settings.keep_alive_s, settings.send_timeout_s)
                call = UpstreamCall(gateway.pool, call_plan)
                # What is kept is what the caller gets, in the engine's dialect.
                captured = () if context.keeping is None else (context.keeping.answer,)
                stages = (*self._stages(route), *_filters(guard), *kept, *captured, *asked.stages)
                ticket = ticket if is_awaited else None
                parts = ExchangeParts(request, settings, call, watch, settlement, gateway.ledger, ticket, send, stages)
                exchange: Exchange = StreamExchange(parts) if request.stream else UnaryExchange(parts)
                gateway.watches.add(watch)
                try:
                    await exchange.run()
                finally:
                    gateway.watches.discard(watch)
                    watch.close()
            finally:
                for answer in kept:
                    answer.finish()
                if context.keeping is not None:
                    context.keeping.finish()
                settlement.settle(Ending("failed", "internal_error", 500), TokenCounts(), "exact", 0, None)
        finally:
            allowance.settle(TokenCounts())  # does nothing once the exchange has settled
            gateway.alerts.note(reservation)

    async def _hold(
        self, terms: Terms, request_id: str, request: GenerationRequest, count: CountPrompt
    ) -> tuple[GenerationRequest, Reservation]:
        """Hold what the request needs; gives it with its prompt counted, where that was to be known.

        Raises:
            ApiError: 402 or 429, a limit is reached; 503, a limit cannot be checked now.
        """
        try:
            return await terms.hold(request_id, request, count)
        except LimitReached as limit:
            self.gateway.metrics.limited(limit.rule.kind.value)
            raise refusal_of(limit) from None
        except LimitsUnavailable as limits:
            self.gateway.metrics.limited("unavailable")
            raise refusal_of(limits) from None

    def _stages(self, route: RouteAsk) -> tuple[Stage, ...]:
        """What the answer passes on its way, before its translation."""
        if route.model is not None and self.gateway.pool.route(route.model, route.needs).renames:
            return (ModelNameStage(route.model),)
        return ()

    async def _guard(self, context: RequestContext, key: KeyRecord) -> WordGuard | None:
        """The word filter of this request, if it has one."""
        guard = await self.gateway.words.guard_of(watched_of(context, key), key.org_id, context.note)
        context.list_version = NO_LISTS_VERSION if guard is None else guard.policy.version
        return guard

    def _plan(
        self, asked: Translated, route: RouteAsk, key: KeyRecord, clamp: int | None, span: str | None
    ) -> CallPlan:
        request = asked.request
        body_for = body_maker(request, key, route.model, clamp)
        return CallPlan(asked.prefix, request.dialect.path, route, body_for, key.public_id, request.stream, span)


def _require_model(key: KeyRecord, model: str | None) -> None:
    if not key.allows_model(model):
        allowed = f"only: {', '.join(key.models)}" if key.models else "nor any other"
        message = f"the key {key.public_id} may not use the model {model!r}, {allowed}"
        raise ApiError(403, message, param="model", code="model_not_allowed")


def _filters(guard: WordGuard | None) -> tuple[Stage, ...]:
    """The word filter as a stage of the answer."""
    stage = None if guard is None else guard.stage()
    return () if stage is None else (stage,)


def subject_of(key: KeyRecord, model: str | None) -> Subject:
    """Whose limits count for a request."""
    return Subject(key.public_id, key.org_id, key.team_id, key.user_id, model)
