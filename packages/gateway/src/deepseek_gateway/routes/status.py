"""GET /health, /ready, /version and /metrics."""

from dataclasses import dataclass

import orjson
from starlette.types import Receive, Scope, Send

import deepseek_gateway
from deepseek_gateway.edge.context import context_of
from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.edge.siblings import OWN, merged_metrics
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.metrics import CONTENT_TYPE
from deepseek_gateway.stack.workers import socket_path


@dataclass(frozen=True, slots=True)
class StatusRoutes:
    """Pages that need no key."""

    gateway: Gateway

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Whether the process answers."""
        context_of(scope).route = "/health"
        await send_body(send, 200, orjson.dumps({"status": "ok"}))

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Whether it should get traffic."""
        context_of(scope).route = "/ready"
        reason = self.gateway.not_ready()
        if reason is not None:
            raise ApiError(503, reason, code="not_ready", headers={"retry-after": "1"})
        answer: dict[str, object] = {"status": "ready", "config": self.gateway.snapshot.version}
        if faults := self.gateway.faults():
            answer["faults"] = faults
        await send_body(send, 200, orjson.dumps(answer))

    async def version(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """The gateway's version."""
        context_of(scope).route = "/version"
        await send_body(send, 200, orjson.dumps({"version": deepseek_gateway.__version__}))

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Prometheus text."""
        context_of(scope).route = "/metrics"
        gateway = self.gateway
        gateway.metrics.limits(gateway.limit_figures)
        gateway.metrics.health(gateway.health_figures)
        text = gateway.metrics.exposition(
            gateway.running, gateway.ledger.pending_rows, limits_alone=gateway.limiter.trouble is not None
        )
        settings = gateway.settings
        if settings.workers > 1 and scope["query_string"] != OWN:
            sockets = {number: socket_path(settings.state_dir, number) for number in range(settings.workers)}
            text = await merged_metrics(text, settings.worker, sockets)
        await send_body(send, 200, text, CONTENT_TYPE)
