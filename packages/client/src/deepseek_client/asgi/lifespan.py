"""An app's lifespan: start it before the first request, end it after the last."""

import asyncio
from typing import Any

from deepseek_client.asgi.exchange import ASGIApp, Message


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
