"""GET models and models/{id}: what the engines serve, as far as the key may use it, in the caller's shape."""

import asyncio
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import orjson
from starlette.types import Receive, Scope, Send

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.auth.records import Scope as KeyScope
from deepseek_gateway.dialects.anthropic_errors import ANTHROPIC_ERRORS
from deepseek_gateway.dialects.anthropic_models import model_of, page_of, speaks_anthropic
from deepseek_gateway.edge.context import context_of
from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.errors import ApiError, UpstreamError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.route.table import Needs
from deepseek_gateway.routes.access import authenticate
from deepseek_gateway.routes.asking import CLOUD_TAG
from deepseek_gateway.upstream.upstream import Upstream

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ModelsRoute:
    """The list, or one model of it when the path goes on."""

    gateway: Gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Serve one request."""
        name = unquote(scope["path_params"].get("id", ""))
        context, is_anthropics = context_of(scope), speaks_anthropic(scope)
        context.route = "/v1/models/{id}" if name else "/v1/models"
        if is_anthropics:
            context.errors = ANTHROPIC_ERRORS
        key = await authenticate(self.gateway, scope, KeyScope.INFERENCE)
        models = await self._models(key)
        if not name:
            listed = list(models.values())
            page = page_of(listed) if is_anthropics else {"object": "list", "data": listed}
            await send_body(send, 200, orjson.dumps(page))
            return
        if name not in models:
            known = ", ".join(models) or "none"
            message = f"there is no model {name[:200]!r} for this key; there are: {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        await send_body(send, 200, orjson.dumps(model_of(models[name]) if is_anthropics else models[name]))

    async def _models(self, key: KeyRecord) -> dict[str, Any]:
        """Models by id: aliases, and what all engines that answer list; as far as the key may use them.

        Raises:
            ApiError: 503, no engine answers.
        """
        pool = self.gateway.pool
        needs = Needs(CLOUD_TAG in key.tags)
        serving = [upstream for upstream in pool.upstreams if upstream.is_up and needs.admits(upstream.kind)]
        answers = await asyncio.gather(*(_ask(upstream) for upstream in serving))
        listed = {upstream: models for upstream, models in zip(serving, answers, strict=True) if models is not None}
        if not listed:
            raise ApiError(
                503, "no engine takes requests now", code="upstream_unavailable", headers={"retry-after": "1"}
            )
        merged: dict[str, Any] = {}
        for name in pool.known_models():
            route = pool.route(name, needs)
            target = next((at for tier in route.tiers for at in tier if at.upstream in listed), None)
            if target is not None:
                merged[name] = {**listed[target.upstream].get(target.model or name, _bare(name)), "id": name}
        for upstream, models in listed.items():
            if upstream.learns_models:  # an adapter may be newer than our last look
                merged |= {name: model for name, model in models.items() if name not in merged}
        return {name: model for name, model in merged.items() if key.allows_model(name)}


async def _ask(upstream: Upstream) -> dict[str, dict[str, Any]] | None:
    """What an upstream lists; of the cloud what it did list, as its account is not asked for each caller."""
    if upstream.kind == "deepseek-cloud":
        return {name: _bare(name) for name in upstream.models}
    client = upstream.client
    try:
        answer = await client.get(client.address.endpoint("v1", "models"), TIMEOUT_S)
        data = list(orjson.loads(answer.body)["data"])
    except (UpstreamError, ValueError, KeyError, TypeError):
        return None
    models = [cast("dict[str, Any]", model) for model in data if isinstance(model, dict) and "id" in model]
    return {str(model["id"]): model for model in models}


def _bare(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": "deepseek"}
