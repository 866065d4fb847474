"""The commands as real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from deepseek_gateway.auth.drafts import KeyDraft
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.settings import load_settings
from deepseek_gateway.state_dir import open_store, prepare_state

DEADLINE_S = 30.0
GATEWAY = (sys.executable, "-m", "deepseek_gateway")
FAKE_ENGINE = (sys.executable, "-m", "deepseek_gateway.testing")


class RunningProcess:
    """A process whose output is gathered as it comes; killed when the block ends."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(  # noqa: S603  the test's own command
            list(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=_gather, args=(self.process.stdout, self.lines), daemon=True),
            threading.Thread(target=_gather, args=(self.process.stderr, self.errors), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def line(self, start: str = "") -> str:
        """The first line on stdout that starts so, once it is there.

        Raises:
            RuntimeError: the process ended, or the deadline passed, before.
        """
        return self._find(self.lines, start)

    def error_line(self, part: str) -> str:
        """The first line on stderr that holds a text, once it is there.

        Raises:
            RuntimeError: the process ended, or the deadline passed, before.
        """
        return self._find(self.errors, "", part)

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; gives its status, negative for the signal that killed it."""
        status = self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join()
        return status

    def _find(self, lines: list[str], start: str, part: str = "") -> str:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            is_over = self.process.poll() is not None
            for line in list(lines):
                if line.startswith(start) and part in line:
                    return line
            if is_over and not any(reader.is_alive() for reader in self._readers):
                break
            time.sleep(0.005)
        raise RuntimeError(f"no line with {start or part!r}; stderr:\n" + "\n".join(self.errors))


def make_state(state_dir: Path, store_url: str | None = None) -> str:
    """A migrated state directory; gives the text of a key."""
    settings = load_settings(state_dir=state_dir, store_url=store_url)
    prepare_state(settings)
    store, pepper = open_store(settings)
    with closing(store):
        return KeyService(store, pepper).create(Principal.operator(), KeyDraft(name="test")).text


def gateway_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `deepseek-gateway` to its end."""
    command = [*GATEWAY, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)  # noqa: S603


def _gather(stream: Any, lines: list[str]) -> None:
    for line in stream:
        lines.append(line.rstrip("\n"))  # noqa: PERF401  each line must be seen as it comes
