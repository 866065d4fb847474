"""An app as a server runs it: its lifespan, and the loop and thread that it lives in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from deepseek_client.asgi.exchange import ASGIApp, ASGIExchange, Head, Message


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


class Lifespan:
    """The lifespan of one app on one event loop. An app that knows no lifespan is used without.

    Attributes:
        state: what the app wants each request to see.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._answer: asyncio.Future[Message] | None = None
        self._has_asked = False

    async def start(self) -> None:
        """Run the app's start.

        Raises:
            RuntimeError: it failed.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        message = await self._answer
        if message["type"] == "lifespan.startup.failed":
            raise RuntimeError(f"the app did not start: {message.get('message') or 'it does not say why'}")

    async def end(self) -> None:
        """Run the app's end, if it started.

        Raises:
            RuntimeError: it failed.
        """
        if self._task is None or self._task.done():
            return
        self._answer = asyncio.get_running_loop().create_future()
        self._ending.set()
        message = await self._answer
        await self._task
        if message["type"] == "lifespan.shutdown.failed":
            raise RuntimeError(f"the app did not end well: {message.get('message') or 'it does not say why'}")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        ended: Message = {"type": "lifespan.unknown"}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:
            # An app without a lifespan raises at the scope; one that was asked to start or end has failed at that.
            if self._has_asked:
                stage = "shutdown" if self._ending.is_set() else "startup"
                ended = {"type": f"lifespan.{stage}.failed", "message": repr(error)}
        await self._send(ended)

    async def _receive(self) -> Message:
        if not self._has_asked:
            self._has_asked = True
            return {"type": "lifespan.startup"}
        await self._ending.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)
