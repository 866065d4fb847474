"""The routes that generate nothing: models, health, metrics, abort, openapi."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import deepseek_engine
from deepseek_client.types import Model, ModelList
from deepseek_engine.server.metrics import CONTENT_TYPE
from deepseek_engine.server.openapi.document import build_document
from deepseek_engine.server.served_models import ServedModel
from deepseek_engine.server.state import ServerState

Handler = Callable[[Request], Awaitable[Response]]


class Routes:
    """Handlers over one server's state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:  # noqa: ARG002  Starlette's signature
        """Every name that the model is served under."""
        models = self._state.models.all()
        return _json(ModelList(object="list", data=[self._model(model) for model in models]).to_wire())

    async def model(self, request: Request) -> Response:
        """One of them."""
        return _json(self._model(self._state.models.find(request.path_params["model_id"])).to_wire())

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Whether this process answers."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:  # noqa: ARG002
        """Whether it may take traffic."""
        self._state.check_ready()
        return _json({"status": "ready", "model": self._state.settings.model_names[0]})

    async def version(self, request: Request) -> Response:  # noqa: ARG002
        """The engine's version."""
        return _json({"version": deepseek_engine.__version__})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """Prometheus text."""
        return Response(self._state.metrics.exposition(), headers={"content-type": CONTENT_TYPE.decode()})

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002
        """This interface, in OpenAPI's form."""
        return _json(build_document(has_key=self._state.settings.api_key is not None))

    async def abort(self, request: Request) -> Response:
        """End the requests whose `x-request-id` is the path's; their own answers then end with `abort`."""
        request_id = request.path_params["request_id"]
        return _json({"id": request_id, "aborted": self._state.running.abort(request_id)})

    def _model(self, model: ServedModel) -> Model:
        lineage = {} if model.parent is None else {"parent": model.parent}
        return Model(
            id=model.name,
            **lineage,
            object="model",
            created=self._created,
            owned_by="deepseek-engine",
            max_model_len=self._state.context_len,
        )


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), headers={"content-type": "application/json"})
