"""The engine process of `up`: start it under its guard, wait until it is ready, stop it."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deepseek_gateway.errors import GatewayError, UpstreamError
from deepseek_gateway.upstream.address import UpstreamAddress
from deepseek_gateway.upstream.client import UpstreamClient

MAX_SOCKET_PATH_BYTES = 100
"""The kernel's limit is 108 on Linux and 104 on macOS."""

POLL_S = 0.1
TAIL_LINES = 15
TAIL_BYTES = 16 * 1024
MAX_LOG_BYTES = 10 * 2**20


class EngineError(GatewayError):
    """The engine ended, or did not get ready in time; the message ends with its last lines."""


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """Where an engine of a state directory has its socket, its log and its lock."""

    socket: Path
    log: Path
    lock: Path

    @classmethod
    def within(cls, state_dir: Path) -> "EngineFiles":
        """In the state directory; the socket's folder in the temporary one if its path would be too long.

        The socket's folder is closed to other users: who reaches the engine itself needs no key.
        """
        folder = state_dir / "run"
        if len(os.fsencode(folder / "engine.sock")) > MAX_SOCKET_PATH_BYTES:
            folder = Path(tempfile.mkdtemp(prefix="deepseek-"))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        return cls(folder / "engine.sock", state_dir / "engine.log", state_dir / "engine.lock")

    def clear(self) -> None:
        """Remove the socket and its folder."""
        self.socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.socket.parent.rmdir()


class EngineProcess:
    """One run of the engine."""

    def __init__(self, command: Sequence[str], files: EngineFiles) -> None:
        self._command = list(command)
        self._files = files
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it under its guard; what an earlier run left is cleared away."""
        self._files.socket.unlink(missing_ok=True)
        guard = [sys.executable, "-m", "deepseek_gateway.stack.guard", str(self._files.lock), "--"]
        with _open_log(self._files.log) as log:
            self._process = await asyncio.create_subprocess_exec(
                *guard,
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for the gateway, which drains first
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    async def until_ready(self, timeout_s: float, progress: Callable[[float], None]) -> None:
        """Wait until its /ready says yes; `progress` gets the seconds waited, at each look.

        Raises:
            EngineError: it ended, or is not ready after `timeout_s`.
        """
        began_s = asyncio.get_running_loop().time()
        address = UpstreamAddress.parse(f"unix://{self._files.socket}")
        async with UpstreamClient(address, None, connect_timeout_s=1.0) as client:
            while True:
                waited_s = asyncio.get_running_loop().time() - began_s
                if self._process is None or self._process.returncode is not None:
                    raise EngineError(f"the engine ended with status {await self.wait()}:\n{self.tail()}")
                if waited_s > timeout_s:
                    raise EngineError(f"the engine is not ready after {timeout_s:g} s:\n{self.tail()}")
                progress(waited_s)
                with contextlib.suppress(UpstreamError):
                    if (await client.get(address.outside("ready"), timeout_s=2.0)).status == 200:
                        return
                await asyncio.sleep(POLL_S)

    async def wait(self) -> int:
        """Wait until it ends; gives its status, -1 of one that could not be started."""
        return -1 if self._process is None else await self._process.wait()

    async def stop(self) -> None:
        """Let it end by itself; the guard kills it after its grace."""
        self.signal(signal.SIGTERM)
        if self._process is not None:
            await self._process.wait()

    def signal(self, number: int) -> None:
        """Signal the guard: SIGTERM once ends the engine, twice kills it."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            with self._files.log.open("rb") as file:
                file.seek(max(0, self._files.log.stat().st_size - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return "(no log)"
        lines = [f"  {line}" for line in text.splitlines()[-TAIL_LINES:]]
        return "\n".join([*lines, f"(all of it: {self._files.log})"])


def _open_log(path: Path) -> BinaryIO:
    """The log, to append to; a large one is set aside first."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    return path.open("ab")
