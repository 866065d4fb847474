"""uvicorn around the app, with a drain of our own: SIGTERM ends what may end, and loses nothing."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, cast

import uvicorn

from deepseek_gateway.app import create_app
from deepseek_gateway.edge.head import HeadLimits
from deepseek_gateway.edge.protocol import GuardedProtocol, guarded
from deepseek_gateway.edge.tls import tls_files
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.gateway import Gateway

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Seconds that an idle connection stays open: longer than common load balancers keep theirs (60 s)."""

BACKLOG = 2048

SWITCH_INTERVAL_S = 0.0005
"""How long a thread that writes to the store may keep requests waiting; Python's 5 ms would be their slowest ones."""


def keep_pauses_short() -> None:
    """Set up a process that only serves; call it once everything is loaded.

    What is there then stays, so no collection needs to look at it: a whole one took 38 ms in which no request moved.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()


def forget_late_lookups(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler: drops the failure of a name for which nobody waits any more.

    A connection that gave up while it looked its host up leaves the lookup to end by itself, in uvloop and in asyncio.
    Who wanted the connection has said what came of it.
    """
    if not isinstance(context.get("exception"), socket.gaierror):
        loop.default_exception_handler(context)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would end it before the drain, and with a listener that can change."""

    def __init__(self, config: uvicorn.Config, context: ssl.SSLContext | None, handshake_timeout_s: float) -> None:
        super().__init__(config)
        self._context = context
        self._handshake_timeout_s = handshake_timeout_s
        self._sockets: list[socket.socket] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self._sockets = list(sockets or ())
        self.servers = [await self._listen(listener) for listener in self._sockets]
        self.started = True

    async def change_context(self, context: ssl.SSLContext) -> None:
        """Use another certificate for connections from now on; those that are open keep theirs."""
        self._context = context
        # Both servers take from one queue of the kernel, so no caller is turned away in between.
        fresh = [await self._listen(listener) for listener in self._sockets]
        old, self.servers = self.servers, fresh
        for server in old:
            server.close()

    async def _listen(self, listener: socket.socket) -> asyncio.Server:
        made = cast("type[GuardedProtocol]", self.config.http_protocol_class)

        def protocol() -> GuardedProtocol:
            return made(config=self.config, server_state=self.server_state, app_state={})

        loop, own = asyncio.get_running_loop(), listener.dup()
        if listener.family == socket.AF_UNIX:
            return await loop.create_unix_server(protocol, sock=own, backlog=BACKLOG)
        timeout_s = None if self._context is None else self._handshake_timeout_s
        return await loop.create_server(
            protocol, sock=own, ssl=self._context, ssl_handshake_timeout=timeout_s, backlog=BACKLOG
        )


class GatewayServer:
    """Serves a gateway on a socket until told to stop."""

    def __init__(self, gateway: Gateway, *listeners: socket.socket) -> None:
        settings = gateway.settings
        limits = HeadLimits(
            max_bytes=settings.max_head_bytes,
            timeout_s=settings.head_timeout_s,
            max_connections=settings.max_connections,
        )
        self._tls = tls_files(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        context = None if self._tls is None else self._tls.load()
        self._warn_of_its_end()
        config = uvicorn.Config(
            create_app(gateway),
            http=guarded(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=None,
        )
        self._gateway = gateway
        self._listeners = listeners
        self._server = _Server(config, context, settings.head_timeout_s)
        self._reloading: asyncio.Future[None] | None = None
        self._stop = asyncio.Event()
        self._now = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._listeners[0].getsockname()[:2]
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def is_stopping_now(self) -> bool:
        """Whether `stop` was called a second time."""
        return self._now.is_set()

    async def unless_stopped(self, wait: Coroutine[object, object, object]) -> bool:
        """Wait for something that comes before serving; False when `stop` came first, and ended it."""
        waiting, stopped = asyncio.create_task(wait), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
            return waiting.done()
        finally:
            waiting.cancel()
            stopped.cancel()
            await asyncio.gather(waiting, stopped, return_exceptions=True)

    def stop(self) -> None:
        """Drain, then end; a second call ends at once."""
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    @contextlib.contextmanager
    def handling_signals(self) -> Generator[None]:
        """Set up the process's loop: SIGTERM and SIGINT call `stop`.

        SIGHUP reads certificates and what `Gateway.on_hangup` holds again.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(forget_late_lookups)
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self._hang_up}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _warn_of_its_end(self) -> None:
        if self._tls is not None and (warning := self._tls.warning(time.time())) is not None:
            logger.warning("%s", warning)

    def _hang_up(self) -> None:
        for callback in self._gateway.on_hangup:
            callback()
        self._reloading = asyncio.ensure_future(self.reload_certificates())

    async def reload_certificates(self) -> None:
        """Read the TLS files again; what cannot be used changes nothing."""
        if self._tls is None:
            return
        try:
            context = await asyncio.to_thread(self._tls.load)
            await self._server.change_context(context)
            await asyncio.to_thread(self._warn_of_its_end)
        except (ConfigurationError, OSError) as error:
            logger.error("the certificates stay as they were: %s", error)  # noqa: TRY400  the message says it all
        else:
            logger.info("new certificates are in use")

    async def serve(self, ready: Callable[[str], Awaitable[None]] | None = None) -> None:
        """Serve until stopped; `ready` is called with the URL once requests are taken."""
        serving = asyncio.create_task(self._server.serve(list(self._listeners)))
        try:
            while not self._server.started and not serving.done():  # noqa: ASYNC110  uvicorn has no event for it
                await asyncio.sleep(0.005)
            if ready is not None and not serving.done():
                await ready(self.url)
            await _first_of(self._stop.wait(), _ended(serving))
            if not serving.done():
                await _first_of(self._gateway.drain(), self._now.wait())
        finally:
            self._server.should_exit = True
            self._server.force_exit = self._now.is_set()
            await serving


def listen(host: str, port: int, send_timeout_s: float, *, shared: bool = False) -> socket.socket:
    """A listening socket; port 0 is any free one, host `::` every address of the machine.

    `shared` lets other processes of ours listen there too.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = host == "::" and socket.has_dualstack_ipv6()  # all addresses are those of IPv4, too
        listener = socket.create_server(
            address[:2], family=family, backlog=BACKLOG, reuse_port=shared, dualstack_ipv6=both
        )
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A caller that never reads, or is gone without a word: the kernel ends its connection, and our buffers go.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(send_timeout_s * 1000))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # asyncio sets it only where the socket names its protocol; without it small events wait for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def listen_unix(path: Path) -> socket.socket:
    """A listening unix socket that only this user may connect to.

    Raises:
        ConfigurationError: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


async def _first_of(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
