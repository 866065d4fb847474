"""The ASGI app: the table of routes, and what every request gets around its own: an id, an answer, a log line."""

import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from deepseek_gateway.audit.life import refusal_of
from deepseek_gateway.dialects.anthropic_errors import ANTHROPIC_ERRORS
from deepseek_gateway.dialects.aside import CountTranslation
from deepseek_gateway.dialects.messages import MessagesTranslation
from deepseek_gateway.dialects.responses import ResponsesTranslation
from deepseek_gateway.edge.context import STATE_KEY, RequestContext, header
from deepseek_gateway.edge.error_shape import OPENAI_ERRORS, ErrorShape
from deepseek_gateway.edge.respond import send_error
from deepseek_gateway.edge.sender import Sender
from deepseek_gateway.edge.traceparent import TraceParent
from deepseek_gateway.edge.watch import WatchError
from deepseek_gateway.errors import ApiError, StoreUnavailableError, StoreValueError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.relay.exchange import CLIENT_GONE_STATUS
from deepseek_gateway.relay.request import Dialect
from deepseek_gateway.routes.balance import BalanceRoute
from deepseek_gateway.routes.generation import GenerationRoute
from deepseek_gateway.routes.lazy import LazyTable
from deepseek_gateway.routes.models import ModelsRoute
from deepseek_gateway.routes.status import StatusRoutes
from deepseek_gateway.routes.table import RouteTable
from deepseek_gateway.web.mount import add_pages

logger = logging.getLogger(__name__)

QUIET_PATHS = frozenset({"/health", "/ready", "/metrics", "/ui/live"})
"""Looked at by machines every second: they stay out of the access log."""

ANTHROPIC_PREFIXES = ("/messages", "/v1/messages", "/anthropic/")


def create_app(gateway: Gateway) -> ASGIApp:
    """The app of a gateway that is started."""
    return GatewayApp(gateway, route_table(gateway))


def route_table(gateway: Gateway) -> RouteTable:
    """Every path with its methods and handlers; those of the admin API are in a table that loads on first use."""
    table = RouteTable()
    status, models = StatusRoutes(gateway), ModelsRoute(gateway)
    for prefix in ("", "/v1"):
        table.get(f"{prefix}/health", status.health)
        table.get(f"{prefix}/ready", status.ready)
        table.get(f"{prefix}/version", status.version)
        table.get(f"{prefix}/metrics", status.metrics)
    for prefix in ("", "/v1", "/beta", "/anthropic", "/anthropic/v1"):
        table.get(f"{prefix}/models", models)
        table.get(f"{prefix}/models/{{id...}}", models)
    for prefix in ("", "/v1", "/beta"):
        table.get(f"{prefix}/user/balance", BalanceRoute(gateway))
        for dialect in Dialect:
            table.post(f"{prefix}/{dialect.value}", GenerationRoute(gateway, dialect, prefix.strip("/") or "v1"))
    responses = GenerationRoute(gateway, ResponsesTranslation(), "v1")
    for prefix in ("", "/v1"):
        table.post(f"{prefix}/responses", responses)
    messages = GenerationRoute(gateway, MessagesTranslation(), "v1")
    for prefix in ("", "/v1", "/anthropic", "/anthropic/v1"):
        table.post(f"{prefix}/messages", messages)
        table.post(f"{prefix}/messages/count_tokens", GenerationRoute(gateway, CountTranslation(), "v1"))
    administration = LazyTable(gateway, "routes.admin.table", "admin_table")
    for prefix in ("/admin/", "/openapi.json"):
        table.mount(prefix, administration)
    if gateway.settings.web:
        add_pages(table, gateway)
    return table


def errors_of(path: str) -> ErrorShape:
    """How a path's callers read errors, also where nothing is there."""
    return ANTHROPIC_ERRORS if path.startswith(ANTHROPIC_PREFIXES) else OPENAI_ERRORS


class GatewayApp:
    """Finds the route, and turns what it raises into an answer."""

    def __init__(self, gateway: Gateway, routes: RouteTable) -> None:
        self._gateway = gateway
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; other protocols are refused."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP, not {scope['type']}: run it with `deepseek-gateway serve`")
        context = scope[STATE_KEY] = RequestContext()
        context.errors = errors_of(scope["path"])
        parent = TraceParent.parse(header(scope, b"traceparent"))
        context.span = self._span_below(parent)
        refused: ApiError | None = None
        sender = Sender(send, context, scope)
        try:
            handler, scope["path_params"] = self._routes.find(scope["method"], scope["path"])
            await handler(scope, receive, sender)
        except WatchError:
            context.status = CLIENT_GONE_STATUS
        except Exception as error:
            refused = _answer_of(error, context.request_id)
            if not sender.has_begun:
                await send_error(sender, refused, context.errors)
        finally:
            self._gateway.metrics.answered(context)
            if context.is_traced and context.key_id is not None and context.outcome == "-":
                self._gateway.ledger.note(refusal_of(context, refused))
            if scope["path"] not in QUIET_PATHS:
                self._report(context, parent)

    def _span_below(self, parent: TraceParent | None) -> TraceParent | None:
        """This request's span: below its caller's, or the first of a trace; none when nobody traces."""
        if parent is not None:
            return parent.child()
        return None if self._gateway.tracing is None else TraceParent.begin()

    def _report(self, context: RequestContext, parent: TraceParent | None) -> None:
        self._gateway.access_log.log(context)
        if self._gateway.tracing is not None and context.span is not None:
            self._gateway.tracing.end(context, parent, context.span)


def _answer_of(error: Exception, request_id: str) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, StoreUnavailableError):
        logger.warning("request %s: %s", request_id, error)
        return ApiError(503, "the store cannot be used now: try again in 1 s", headers={"retry-after": "1"})
    if isinstance(error, StoreValueError):
        logger.warning("request %s: %s", request_id, error)
        return ApiError(400, "a value of the request cannot be kept: leave out control characters")
    logger.error("request %s failed", request_id, exc_info=error)
    return ApiError(500, "the gateway failed; the log has the request's id")
