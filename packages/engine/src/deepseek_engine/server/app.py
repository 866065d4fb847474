"""create_app: the table of contents of the HTTP interface."""

import hmac
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepseek_engine.errors import EngineError
from deepseek_engine.server.adapter_routes import AdapterRoutes
from deepseek_engine.server.engine_client import EngineClient
from deepseek_engine.server.errors import ApiError, as_api_error
from deepseek_engine.server.generate_endpoint import CHAT, COMPLETIONS, EMBEDDINGS, GENERATE, GenerateEndpoint
from deepseek_engine.server.http import (
    REQUEST_ID_KEY,
    ClientGoneError,
    choose_request_id,
    error_headers,
    header,
    send_error,
)
from deepseek_engine.server.routes import Routes
from deepseek_engine.server.settings import ServerSettings
from deepseek_engine.server.state import ServerState
from deepseek_engine.server.tokenize_routes import TokenizeRoutes
from deepseek_engine.tokenizer import Tokenizer

_PREFIXES: Final = ("/v1", "", "/beta")
_OPEN_PATHS: Final = ("/health", "/ready")
"""Probes carry no key; everything else needs it, whatever prefix it is called under."""


def create_app(engine: EngineClient, tokenizer: Tokenizer, settings: ServerSettings) -> ASGIApp:
    """The HTTP interface over a running engine.

    Args:
        engine: started; the caller shuts it down.
        tokenizer: the model's.
        settings: names, defaults, limits and the key.
    """
    return create_app_for(ServerState(engine, tokenizer, settings))


def create_app_for(state: ServerState) -> ASGIApp:
    """As `create_app`, over a state that the caller keeps, to drain it at shutdown."""
    routes, adapters, tokens = Routes(state), AdapterRoutes(state), TokenizeRoutes(state)
    table = [
        ("POST", "/chat/completions", GenerateEndpoint(state, CHAT)),
        ("POST", "/generate", GenerateEndpoint(state, GENERATE)),
        ("POST", "/completions", GenerateEndpoint(state, COMPLETIONS)),
        ("POST", "/embeddings", GenerateEndpoint(state, EMBEDDINGS)),
        ("POST", "/requests/{request_id}/abort", routes.abort),
        ("GET", "/models", routes.models),
        ("GET", "/models/{model_id:path}", routes.model),
        ("POST", "/load_lora_adapter", adapters.load),
        ("POST", "/unload_lora_adapter", adapters.unload),
        ("POST", "/tokenize", tokens.tokenize),
        ("POST", "/detokenize", tokens.detokenize),
        ("GET", "/health", routes.health),
        ("GET", "/ready", routes.ready),
        ("GET", "/metrics", routes.metrics),
        ("GET", "/version", routes.version),
        ("GET", "/openapi.json", routes.openapi),
    ]
    app = Starlette(
        routes=[
            Route(prefix + path, endpoint, methods=[method]) for prefix in _PREFIXES for method, path, endpoint in table
        ],
        exception_handlers={
            HTTPException: _answer_http_error,
            ApiError: _answer_error,
            EngineError: _answer_error,
            ClientGoneError: _answer_nobody,
            Exception: _answer_error,
        },
    )
    app.router.redirect_slashes = False
    key = state.settings.api_key
    return _Entrance(app, None if key is None else key.get_secret_value())


class _Entrance:
    """Gives every answer its `x-request-id`, and checks the key."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID_KEY] = choose_request_id(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        if self._may_pass(scope):
            await self._app(scope, receive, send_with_id)
        else:
            await send_error(send_with_id, ApiError(401, "a valid key is needed: Authorization: Bearer <key>"))

    def _may_pass(self, scope: Scope) -> bool:
        if self._api_key is None or scope["path"] in _OPEN_PATHS:
            return True
        scheme, _, given = (header(scope, b"authorization") or "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._api_key)


async def _answer_error(request: Request, error: Exception) -> Response:  # noqa: ARG001  Starlette's signature
    failure = as_api_error(error)
    return Response(failure.body, status_code=failure.status, headers=error_headers(failure))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    message = f"{method} {path}: {'there is no such path' if error.status_code == 404 else error.detail}"
    answer = await _answer_error(request, ApiError(error.status_code, message))
    answer.headers.update(error.headers or {})  # `Allow` of a 405
    return answer


async def _answer_nobody(request: Request, error: Exception) -> Response:  # noqa: ARG001  Starlette's signature
    return Response(status_code=400)
