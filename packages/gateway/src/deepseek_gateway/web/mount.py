"""Where the pages hang on the gateway's routes. They load with the first visitor: a start waits for none of it."""

import asyncio
import importlib
from typing import Any

from starlette.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from deepseek_gateway.edge.context import context_of
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.routes.table import RouteTable
from deepseek_gateway.web.oidc import oidc_config


def add_pages(table: RouteTable, gateway: Gateway) -> None:
    """Serve the pages below `/ui`; `/` leads to them.

    Raises:
        ConfigurationError: the sign-in with OpenID Connect is configured in part.
    """
    oidc_config(gateway.settings)
    pages = LazyPages(gateway)
    for path in ("/ui/", "/ui/{path...}"):
        table.get(path, pages)
        table.post(path, pages)
    table.get("/", to_pages)
    table.get("/ui", to_pages)


class LazyPages:
    """The pages' own routes, loaded on first use."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._table: RouteTable | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        table = self._table or await self._load()
        handler, scope["path_params"] = table.find(scope["method"], scope["path"])
        await handler(scope, receive, send)

    async def _load(self) -> RouteTable:
        async with self._loading:
            table = self._table
            if table is None:
                loop = asyncio.get_running_loop()
                table = await loop.run_in_executor(self._gateway.page_executor, _page_table, self._gateway)
                self._table = table
        return table


async def to_pages(scope: Scope, receive: Receive, send: Send) -> None:
    """`/` and `/ui` lead to the pages."""
    context_of(scope).route = "/"
    await RedirectResponse("/ui/", 307)(scope, receive, send)


def _page_table(gateway: Gateway) -> RouteTable:
    app: Any = importlib.import_module("deepseek_gateway.web.app")
    return app.page_table(gateway)
