"""An ASGI app that is served in process on one event loop: its lifespan, and the requests that it is answering."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from deepseek_client.asgi.exchange import ASGIApp, ASGIExchange, Head
from deepseek_client.asgi.lifespan import Lifespan


class ASGIServer:
    """Serves one app on the running loop.

    Args:
        app: the app.
        max_buffered_bytes: how much of an answer may wait for its reader.
        shutdown_s: how long requests may go on after `close`, before they are cancelled.
    """

    def __init__(self, app: ASGIApp, max_buffered_bytes: int, shutdown_s: float) -> None:
        self._app = app
        self._max_buffered_bytes = max_buffered_bytes
        self._shutdown_s = shutdown_s
        self._lifespan = Lifespan(app)
        self._starting: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Task[None], ASGIExchange] = {}

    async def start(self) -> None:
        """Run the app's start, once.

        Raises:
            RuntimeError: it failed.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._lifespan.start())
        await asyncio.shield(self._starting)

    async def open(
        self, scope: dict[str, Any], body: AsyncIterator[bytes], head_s: float | None
    ) -> tuple[Head, ASGIExchange]:
        """Send a request, wait for the head of its answer.

        Raises:
            TimeoutError: none came within `head_s`.
            Exception: what the app raised.
        """
        await self.start()
        exchange = ASGIExchange(body, self._max_buffered_bytes)
        task = asyncio.create_task(exchange.run(self._app, scope | {"state": dict(self._lifespan.state)}))
        self._running[task] = exchange
        task.add_done_callback(self._running.pop)
        try:
            async with asyncio.timeout(head_s):
                return await exchange.head(), exchange
        except BaseException:
            exchange.disconnect()
            raise

    async def close(self) -> None:
        """Disconnect what still runs, wait for it, cancel what stays, and run the app's end."""
        for exchange in self._running.values():
            exchange.disconnect()
        if self._running:
            _, late = await asyncio.wait(list(self._running), timeout=self._shutdown_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._starting is not None:
            with contextlib.suppress(RuntimeError):  # a start that failed has been told to who asked
                await self._starting
            await self._lifespan.end()
