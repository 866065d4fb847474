"""Several gateway processes on one port: start them, keep them running, end them together.

The kernel spreads connections over them (SO_REUSEPORT). Each has its own journal and its own caches; what they must
count together is in Redis. A worker whose parent is gone ends as well: its standard input is a pipe that only the
parent holds.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.settings import Settings

logger = logging.getLogger(__name__)

READY = "listening on "
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 30.0
STEADY_S = 60.0
"""A worker that lived so long failed for the first time again."""


class Workers:
    """The workers of one `serve --workers N`.

    Args:
        arguments: the command line that asked for them; a worker gets it with its own port and number behind.
        settings: what it says.
    """

    def __init__(self, arguments: Sequence[str], settings: Settings) -> None:
        check_shared_limits(settings)
        self._arguments = list(arguments)
        self._count = settings.workers
        self._holder = hold_port(settings.host, settings.port)
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """Run until all have ended; gives the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        url: asyncio.Future[str] = loop.create_future()
        keepers = [asyncio.create_task(self._keep(number, url)) for number in range(self._count)]
        waiting = asyncio.ensure_future(asyncio.wait(keepers))
        await asyncio.wait((url, waiting), return_when=asyncio.FIRST_COMPLETED)
        if url.done():
            sys.stdout.write(f"{READY}{url.result()} with {self._count} workers\n")
            sys.stdout.flush()
        await waiting
        self._holder.close()
        return self._status

    async def _keep(self, number: int, url: "asyncio.Future[str]") -> None:
        """Run one worker, again and again until all are to end."""
        failures = 0
        while not self._stop.is_set():
            began_s = time.monotonic()
            status, announced = await self._live(number, url)
            if self._stop.is_set():
                self._status = self._status or status
                return
            if announced is None and not url.done():
                self._status = status or 1  # it cannot start, and says why: neither can the others
                self._end(signal.SIGTERM)
                return
            failures = 0 if time.monotonic() - began_s > STEADY_S else failures + 1
            pause_s = min(FIRST_BACKOFF_S * 2 ** min(failures, 8), MAX_BACKOFF_S)
            logger.error("worker %d ended with status %d: it starts again in %g s", number, status, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)

    async def _live(self, number: int, url: "asyncio.Future[str]") -> tuple[int, str | None]:
        """Run one worker once; gives its status, and its URL if it came so far."""
        try:
            process = await self._start(number)
        except OSError as error:
            logger.error("worker %d cannot be started: %s", number, error)  # noqa: TRY400  the message says it all
            return 1, None
        announced = await _announced(process)
        if announced is not None and not url.done():
            url.set_result(announced)
        status = await process.wait()
        del self._processes[number]
        return status, announced

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        port = str(self._holder.getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deepseek_gateway", *self._arguments, "--port", port, "--worker", str(number)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which tells each of them once
        )
        self._processes[number] = process
        if self._stop.is_set():  # told while it was being started
            self._pass_on(signal.SIGTERM)
        return process

    def _end(self, number: int) -> None:
        self._stop.set()
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def check_shared_limits(settings: Settings) -> None:
    """Several processes must count limits together, or be told that they need not.

    Raises:
        ConfigurationError: they would not.
    """
    if getattr(settings, "redis_url", None) is not None:
        return
    if not settings.allow_local_limits:
        raise ConfigurationError(
            f"{settings.workers} workers would each count limits for itself, so that a key could use them "
            f"{settings.workers} times: set GATEWAY_REDIS_URL, or accept it with GATEWAY_ALLOW_LOCAL_LIMITS=true"
        )
    logger.warning("each of %d workers counts limits for itself: a key can use that many times", settings.workers)


def hold_port(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for the workers; it never listens, so no caller lands on it.

    Raises:
        ConfigurationError: the address is in use, or not ours.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        with socket.socket(family, kind) as trial:  # without sharing: somebody else's port is refused here
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
            chosen = (address[0], trial.getsockname()[1], *address[2:])
        holder = socket.socket(family, kind)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a gateway before it may linger
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(chosen)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return holder


def socket_path(state_dir: Path, worker: int) -> Path:
    """Where a worker answers its siblings."""
    return state_dir / f"worker-{worker}.sock"


async def parent_gone() -> None:
    """Return once the parent's end of our standard input is closed."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    os.set_blocking(sys.stdin.fileno(), False)
    loop.add_reader(sys.stdin.fileno(), gone.set)
    await gone.wait()
    loop.remove_reader(sys.stdin.fileno())


async def _announced(process: asyncio.subprocess.Process) -> str | None:
    """The URL that a worker prints when it takes requests; None when it ends before."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        text = line.decode(errors="replace").strip()
        if text.startswith(READY):
            return text.removeprefix(READY)
    return None
