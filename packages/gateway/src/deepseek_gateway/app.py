"""The ASGI app: the table of routes, and what every request gets around its own: an id, an answer, a log line."""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepseek_gateway.access_log import log_request
from deepseek_gateway.dialects.anthropic_errors import ANTHROPIC_ERRORS
from deepseek_gateway.dialects.messages import MessagesTranslation
from deepseek_gateway.edge.context import STATE_KEY, RequestContext
from deepseek_gateway.edge.error_shape import OPENAI_ERRORS, ErrorShape
from deepseek_gateway.edge.respond import send_error
from deepseek_gateway.edge.watch import WatchError
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.relay.exchange import CLIENT_GONE_STATUS
from deepseek_gateway.relay.request import Dialect
from deepseek_gateway.routes.admin import AdminRoutes
from deepseek_gateway.routes.generation import GenerationRoute
from deepseek_gateway.routes.models import ModelsRoute
from deepseek_gateway.routes.status import StatusRoutes

logger = logging.getLogger(__name__)

Routes = dict[str, tuple[str, ASGIApp]]

QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Looked at by machines every second: they stay out of the access log."""

ANTHROPIC_PREFIXES = ("/messages", "/v1/messages", "/anthropic/")

MODEL_PREFIXES = ("/models/", "/v1/models/", "/beta/models/")


def create_app(gateway: Gateway) -> ASGIApp:
    """The app of a gateway that is started."""
    return GatewayApp(gateway, route_table(gateway))


def route_table(gateway: Gateway) -> Routes:
    """Every path with its method and handler; models by id are found by prefix."""
    status, admin, models = StatusRoutes(gateway), AdminRoutes(gateway), ModelsRoute(gateway)
    routes: Routes = {
        "/health": ("GET", status.health),
        "/ready": ("GET", status.ready),
        "/version": ("GET", status.version),
        "/metrics": ("GET", status.metrics),
        "/admin/keys": ("GET", admin.keys),
        "/admin/usage": ("GET", admin.usage),
    }
    for prefix in ("", "/v1", "/beta"):
        routes[f"{prefix}/models"] = ("GET", models)
        for dialect in Dialect:
            route = GenerationRoute(gateway, dialect, prefix.strip("/") or "v1")
            routes[f"{prefix}/{dialect.value}"] = ("POST", route)
    messages = GenerationRoute(gateway, MessagesTranslation(), "v1")
    for prefix in ("", "/v1", "/anthropic", "/anthropic/v1"):
        routes[f"{prefix}/messages"] = ("POST", messages)
    for path in ("/health", "/ready", "/version", "/metrics"):
        routes[f"/v1{path}"] = routes[path]
    return routes


def errors_of(path: str) -> ErrorShape:
    """How a path's callers read errors, also where nothing is there."""
    return ANTHROPIC_ERRORS if path.startswith(ANTHROPIC_PREFIXES) else OPENAI_ERRORS


class GatewayApp:
    """Finds the route, and turns what it raises into an answer."""

    def __init__(self, gateway: Gateway, routes: Routes) -> None:
        self._gateway = gateway
        self._routes = routes
        self._model = ("GET", ModelsRoute(gateway))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; other protocols are refused."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP, not {scope['type']}: run it with `deepseek-gateway serve`")
        context = scope[STATE_KEY] = RequestContext()
        context.errors = errors_of(scope["path"])
        request_id = context.request_id.encode()
        has_begun = False

        async def send_named(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                context.status = message["status"]
                ids = [(b"x-request-id", request_id)]
                if context.errors.id_header is not None:
                    ids.append((context.errors.id_header, request_id))
                message["headers"] = [*message["headers"], *ids]
            await send(message)

        try:
            await self._handler(scope)(scope, receive, send_named)
        except ApiError as error:
            if not has_begun:
                await send_error(send_named, error, context.errors)
        except WatchError:
            context.status = CLIENT_GONE_STATUS
        except Exception:
            logger.exception("request %s failed", context.request_id)
            if not has_begun:
                failure = ApiError(500, "the gateway failed; the log has the request's id")
                await send_error(send_named, failure, context.errors)
        finally:
            self._gateway.metrics.answered(context)
            if scope["path"] not in QUIET_PATHS:
                log_request(context)

    def _handler(self, scope: Scope) -> ASGIApp:
        path: str = scope["path"]
        entry = self._routes.get(path)
        if entry is None and path.startswith(MODEL_PREFIXES):
            entry = self._model
        if entry is None:
            raise ApiError(404, f"there is nothing at {path[:200]}", code="not_found")
        method, handler = entry
        if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
            raise ApiError(405, f"{path[:200]} takes {method}, not {scope['method']}", headers={"allow": method})
        return handler
