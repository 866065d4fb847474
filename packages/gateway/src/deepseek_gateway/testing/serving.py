"""Run ASGI apps behind real sockets inside the running event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

END_S = 1.0
"""Seconds that running requests have when a server ends."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def main_loop(self) -> None:
        """Look more often than uvicorn whether to end: tests start and end many servers."""
        await self.on_tick(0)
        while not self.should_exit:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002  uvicorn's
        """End without uvicorn's fixed pause; what runs has a second."""
        for listening in self.servers:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        tasks = list(self.server_state.tasks)
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=END_S)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


@dataclass(slots=True)
class Served:
    """An app that is being served: its URL, and a way to kill it."""

    url: str
    server: uvicorn.Server

    def kill(self) -> None:
        """Drop the listener and every connection at once, as a killed process does."""
        for listening in self.server.servers:
            listening.close()
        for connection in list(self.server.server_state.connections):
            transport: Any = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


@contextlib.asynccontextmanager
async def serving(
    app: Any,
    *,
    port: int = 0,
    uds: Path | None = None,
    tls: Mapping[str, Any] | None = None,
    protocol: Any = "httptools",
) -> AsyncGenerator[Served]:
    """Serve an app on a free port, on `port`, or on a unix socket, until the block ends.

    `tls` is for uvicorn, as `protocol` is: the gateway's own, or uvicorn's for servers of others.
    """
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        **(tls or {}),
    )
    if uds is not None:
        listener = socket.socket(socket.AF_UNIX)
        await asyncio.to_thread(uds.unlink, missing_ok=True)
        listener.bind(str(uds))
        listener.listen()
        url = f"unix://{uds}"
    else:
        listener = socket.create_server(("127.0.0.1", port))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = _Server(config)
    task = asyncio.create_task(server.serve([listener]))
    while not server.started and not task.done():  # noqa: ASYNC110  uvicorn has no event for it
        await asyncio.sleep(0.001)
    try:
        yield Served(url, server)
    finally:
        server.should_exit = True
        await task
