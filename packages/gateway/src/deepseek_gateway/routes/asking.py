"""What a request asks of routing: by its key, its headers and its body; and whether it is let in at all."""

from starlette.types import Scope

from deepseek_gateway.admit.queue import Priority
from deepseek_gateway.admit.shed import shed_reason
from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.edge.context import header
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.relay.request import Dialect, GenerationRequest
from deepseek_gateway.route.affinity import affinity_key
from deepseek_gateway.route.table import ANY, Needs, Route
from deepseek_gateway.upstream.pool import RouteAsk
from deepseek_gateway.upstream.upstream import Upstream

CLOUD_TAG = "allow-cloud"
"""Keys with it may have their prompts answered by DeepSeek's cloud; of others none ever leaves."""

PRIORITY_TAG = "priority:"
_RANK = list(Priority)


def route_ask(
    gateway: Gateway, scope: Scope, request: GenerationRequest, key: KeyRecord, model: str | None
) -> RouteAsk:
    """What to ask of the pool.

    Raises:
        ApiError: 400, X-Priority is none, or no server of the model speaks this dialect; 403, only the cloud serves
            the model, and the key has not opted in; 503, the gateway or every engine is behind.
    """
    needs = needs_of(key, request.dialect)
    route = check_route(gateway, model, needs, key)
    session = header(scope, b"x-session-id")
    ask = RouteAsk(
        model=model,
        needs=needs,
        affinity=affinity_key(request.fields, key.public_id, session) if route.has_choice else None,
        priority=priority_of(key, header(scope, b"x-priority")),
        org=key.org_id or key.public_id,
        key=key.public_id,
    )
    _shed(gateway, ask, route)
    return ask


def needs_of(key: KeyRecord, dialect: Dialect) -> Needs:
    """What a request needs of a server beside the model."""
    return Needs(CLOUD_TAG in key.tags, dialect is Dialect.GENERATE)


def priority_of(key: KeyRecord, asked: str | None) -> Priority:
    """The class of a request: its key's, or a lower one that the header X-Priority asks for.

    Raises:
        ApiError: 400, the header names no class.
    """
    own = Priority.NORMAL
    for tag in key.tags:
        name = tag.removeprefix(PRIORITY_TAG)
        if name != tag and name in _RANK:
            own = Priority(name)
    if asked is None:
        return own
    if asked.lower() not in _RANK:
        raise ApiError(400, f"x-priority={asked[:40]!r} is none of: {', '.join(Priority)}", param="x-priority")
    return max(own, Priority(asked.lower()), key=_RANK.index)


def check_route(gateway: Gateway, model: str | None, needs: Needs, key: KeyRecord) -> Route[Upstream]:
    """The servers that have the model, for this key.

    Raises:
        ApiError: 404, none has; 400, none speaks this dialect; 403, only the cloud has, and the key has not opted in.
    """
    route = gateway.pool.route(model, needs)
    if not route.is_empty:
        return route
    if gateway.pool.route(model, ANY).is_empty:
        known = ", ".join(gateway.pool.known_models()[:20]) or "none"
        raise ApiError(404, f"no engine serves {model!r}; there are: {known}", param="model", code="model_not_found")
    if needs.own_engine and not gateway.pool.route(model, Needs(needs.allow_cloud)).is_empty:
        message = f"no server of {model!r} has /v1/generate: use /v1/chat/completions"
        raise ApiError(400, message, param="model", code="unsupported_route")
    message = f"{model!r} is served by DeepSeek's cloud only, and the key {key.public_id} has no tag {CLOUD_TAG!r}"
    raise ApiError(403, message, param="model", code="cloud_not_allowed")


def _shed(gateway: Gateway, ask: RouteAsk, route: Route[Upstream]) -> None:
    settings, pool, now_s = gateway.settings, gateway.pool, gateway.pool.now()
    waiting = [
        target.upstream.fresh_waiting(now_s)
        for tier in (route.tiers if settings.shed_engine_queue else ())
        for target in tier
        if target.upstream.is_up
    ]
    lag_s, max_lag_s = gateway.loop_lag.seconds, settings.shed_loop_lag_s
    reason = shed_reason(ask.priority, lag_s, max_lag_s, waiting, settings.shed_engine_queue)
    if reason is None:
        return
    gateway.metrics.routing.shed(reason)
    wait_s = max(1, round(pool.gate.retry_after_s()))
    message = f"the gateway has more than it can serve: try again in {wait_s} s"
    raise ApiError(503, message, code="overloaded", headers={"retry-after": str(wait_s)})
