"""GET models and models/{id}: what the engines serve, as far as the key may use it."""

import asyncio
import itertools
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import orjson
from starlette.types import Receive, Scope, Send

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.auth.records import Scope as KeyScope
from deepseek_gateway.edge.context import context_of
from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.errors import ApiError, UpstreamError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.routes.access import authenticate
from deepseek_gateway.upstream.upstream import Upstream

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ModelsRoute:
    """The list, or one model of it when the path goes on."""

    gateway: Gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Serve one request."""
        name = unquote(scope["path_params"].get("id", ""))
        context_of(scope).route = "/v1/models/{id}" if name else "/v1/models"
        key = await authenticate(self.gateway, scope, KeyScope.INFERENCE)
        models = await self._models(key)
        if not name:
            await send_body(send, 200, orjson.dumps({"object": "list", "data": list(models.values())}))
            return
        if name not in models:
            known = ", ".join(models) or "none"
            message = f"there is no model {name[:200]!r} for this key; there are: {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        await send_body(send, 200, orjson.dumps(models[name]))

    async def _models(self, key: KeyRecord) -> dict[str, Any]:
        """Models by id, of all engines that answer.

        Raises:
            ApiError: 503, none does.
        """
        upstreams = [upstream for upstream in self.gateway.pool.upstreams if upstream.is_up]
        answers = await asyncio.gather(*(_ask(upstream) for upstream in upstreams))
        lists = [models for models in answers if models is not None]
        if not lists:
            raise ApiError(
                503, "no engine takes requests now", code="upstream_unavailable", headers={"retry-after": "1"}
            )
        merged: dict[str, Any] = {}
        for model in itertools.chain.from_iterable(lists):
            merged.setdefault(model["id"], model)
        return {name: model for name, model in merged.items() if key.allows_model(name)}


async def _ask(upstream: Upstream) -> list[dict[str, Any]] | None:
    client = upstream.client
    try:
        answer = await client.get(client.address.endpoint("v1", "models"), TIMEOUT_S)
        data = cast("list[Any]", orjson.loads(answer.body)["data"])
    except (UpstreamError, ValueError, KeyError, TypeError):
        return None
    return [cast("dict[str, Any]", model) for model in data if isinstance(model, dict) and "id" in model]
