"""From start to exit: uvicorn under our own signal handling, the drain, and what happens when the core dies.

serving --SIGTERM--> draining --idle or drain_timeout_s--> stopping --> exit 0
   |                     '--second signal--------------------^
   '--core dies--> 503 for core_death_grace_s --> exit 1

SIGUSR1 changes nothing: it has both processes write what they are doing to the log.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Generator
from typing import Final

import uvicorn

from deepseek_engine.server.app import create_app_for
from deepseek_engine.server.http_protocol import BoundedHttpProtocol
from deepseek_engine.server.state import ServerState
from deepseek_engine.watchdog import write_stacks

logger = logging.getLogger(__name__)

_ABORT_S: Final = 5.0
"""How long aborted requests may take to send their last events."""
_KEEP_ALIVE_CONNECTION_S: Final = 75
"""Idle connections stay longer than the 60 s of common proxies, so that a proxy never reuses one as it closes."""


class _UvicornServer(uvicorn.Server):
    """uvicorn without its signal handlers: its drain closes the door on new requests, where ours answers 503."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class Lifecycle:
    """Serves one state on one socket until a signal comes or the core dies.

    Args:
        state: what is served; its engine is shut down at the end.
        bound: a bound socket, closed at the end.
        on_started: called once the socket takes connections.
    """

    def __init__(self, state: ServerState, bound: socket.socket, on_started: Callable[[], None]) -> None:
        self._state = state
        self._bound = bound
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        config = uvicorn.Config(
            create_app_for(state),
            http=BoundedHttpProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_CONNECTION_S,
            timeout_graceful_shutdown=int(_ABORT_S),
        )
        self._server = _UvicornServer(config, on_started)

    async def run(self) -> int:
        """Serve; the process's exit status: 0 after a drain, 1 when the core died."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        loop.add_signal_handler(signal.SIGUSR1, self.dump_state)
        serving = asyncio.create_task(self._server.serve(sockets=[self._bound]))
        try:
            return await self._until_end(serving)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                loop.remove_signal_handler(number)
            await self._state.grammars.close()
            await self._state.engine.shutdown()

    def request_stop(self) -> None:
        """As the first signal does: drain. Asked again: stop at once."""
        (self._stop_now if self._stop.is_set() else self._stop).set()

    def dump_state(self) -> None:
        """Write down what is going on, here and in the core."""
        logger.critical(  # as the core's: who asks gets it at every --log-level
            "state of the server: %d requests are being answered, %d tasks, draining=%s",
            self._state.running.num_running, len(asyncio.all_tasks()), self._state.is_draining,
        )  # fmt: skip
        write_stacks()
        self._state.engine.dump_state()

    async def _until_end(self, serving: asyncio.Task[None]) -> int:
        stop = asyncio.create_task(self._stop.wait())
        dead = asyncio.create_task(self._state.engine.wait_dead())
        try:
            await asyncio.wait({serving, stop, dead}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                await self._drain(dead)
            elif dead.done():
                await self._outlive_core()
        finally:
            stop.cancel()
            dead.cancel()
        self._server.should_exit = True
        self._server.force_exit = self._stop_now.is_set()
        await serving
        return 0 if self._stop.is_set() else 1

    async def _drain(self, dead: asyncio.Task[None]) -> None:
        self._state.is_draining = True
        timeout_s = self._state.settings.drain_timeout_s
        logger.info("draining: running requests have %g s to finish; a second signal ends them now", timeout_s)
        idle = asyncio.create_task(self._state.running.wait_idle())
        now = asyncio.create_task(self._stop_now.wait())
        try:
            await asyncio.wait({idle, now, dead}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not idle.done():
                # Answers end properly, with what they have, their usage and finish reason `abort`.
                self._state.running.abort_all()
                await asyncio.wait({idle, dead}, timeout=_ABORT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
            now.cancel()

    async def _outlive_core(self) -> None:
        """Let running requests get their error and probes see the state, then give up: a supervisor starts us anew."""
        grace_s = self._state.settings.core_death_grace_s
        logger.error("the engine core is gone: answering 503 for %g s, then exiting with status 1", grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._stop.wait()
        self._stop.clear()  # a signal only ends the grace: the exit is still a failure
