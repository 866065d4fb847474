"""GET /admin/keys and /admin/usage: what `key list` and `usage` print, for keys with the scope `admin`."""

import asyncio
import time
from dataclasses import asdict, dataclass

import orjson
from starlette.types import Receive, Scope, Send

from deepseek_gateway.auth.records import Scope as KeyScope
from deepseek_gateway.edge.context import context_of
from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.routes.access import authenticate
from deepseek_gateway.storage.keys import KeyFilter


@dataclass(frozen=True, slots=True)
class AdminRoutes:
    """Pages for administrators."""

    gateway: Gateway

    async def keys(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """All keys, without their hashes."""
        context_of(scope).route = "/admin/keys"
        await authenticate(self.gateway, scope, KeyScope.ADMIN_READ)
        now = time.time()
        records = await asyncio.to_thread(self.gateway.store.keys.page, KeyFilter(), now, None, 1000)
        await send_body(send, 200, orjson.dumps({"data": [record.to_json(now) for record in records]}))

    async def usage(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Totals by key and day."""
        context_of(scope).route = "/admin/usage"
        await authenticate(self.gateway, scope, KeyScope.ADMIN_READ)
        totals = await asyncio.to_thread(self.gateway.store.ledger.usage, None, None, None)
        rows = [{**asdict(total), "total_tokens": total.total_tokens} for total in totals]
        await send_body(send, 200, orjson.dumps({"data": rows}))
