"""Routes that load with the first request for one of them: a start waits for none of it."""

import asyncio
import gc
import importlib
from collections.abc import Callable
from typing import cast

from starlette.types import Receive, Scope, Send

from deepseek_gateway.gateway import Gateway
from deepseek_gateway.routes.table import RouteTable


class LazyTable:
    """A table of routes of its own, made on first use.

    Args:
        gateway: whose routes they are.
        module: a module of this package, which is imported then.
        maker: the function there that makes the table of a gateway.
    """

    def __init__(self, gateway: Gateway, module: str, maker: str) -> None:
        self._gateway = gateway
        self._module = f"deepseek_gateway.{module}"
        self._maker = maker
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
                table = await loop.run_in_executor(self._gateway.page_executor, self._make)
                self._table = table
        return table

    def _make(self) -> RouteTable:
        make = cast("Callable[[Gateway], RouteTable]", getattr(importlib.import_module(self._module), self._maker))
        table = make(self._gateway)
        if gc.get_freeze_count():  # as at the start: what was loaded stays, and no collection need look at it
            gc.freeze()
        return table
