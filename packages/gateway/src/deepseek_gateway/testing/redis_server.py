"""A real Redis or Valkey server for tests: on a unix socket of its own, nothing on disk."""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("redis-server", "valkey-server")
DEADLINE_S = 20.0


@dataclass(slots=True)
class RedisServer:
    """A running server; `url` is what redis-py's `from_url` takes."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self.path}"

    def command(self, line: str) -> bytes:
        """Send one command without quoting, such as `FLUSHALL`; gives the reply's first bytes.

        Raises:
            OSError: it does not answer.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(str(self.path))
            connection.sendall(line.encode() + b"\r\n")
            return connection.recv(65536)

    def flush(self) -> None:
        """Forget everything but the loaded scripts, as an operator's FLUSHALL does."""
        self.command("FLUSHALL")

    def pause(self) -> None:
        """Stop answering; connections stay."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End at once; what it knew is lost."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start again, empty, at the same place."""
        self.path.unlink(missing_ok=True)
        self.process = _start(self.path)


def redis_program() -> str | None:
    """The installed server, or None."""
    return next((found for name in PROGRAMS if (found := shutil.which(name)) is not None), None)


@contextlib.contextmanager
def redis_server() -> Generator[RedisServer]:
    """An empty server for as long as the block runs.

    Raises:
        RuntimeError: no program is installed, or it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        path = Path(folder) / "redis.sock"
        server = RedisServer(_start(path), path)
        try:
            yield server
        finally:
            server.resume()
            server.kill()


def _start(path: Path) -> subprocess.Popen[bytes]:
    program = redis_program()
    if program is None:
        raise RuntimeError(f"none of {', '.join(PROGRAMS)} is installed")
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(path.parent)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    server, deadline = RedisServer(process, path), time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if server.command("PING").startswith(b"+PONG"):
                return process
        time.sleep(0.01)
    process.kill()
    process.wait()
    raise RuntimeError(f"{program} does not start")
