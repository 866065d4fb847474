"""The programs of this project as processes: start, find out where they listen, stop."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0


def program(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).with_name(name))


def wait_until(
    condition: Callable[[], Any], what: str, timeout_s: float = 30.0, describe: Callable[[], Any] = str
) -> Any:
    """Poll until the condition gives something true; a test that waits for ever says for what."""
    deadline = time.monotonic() + timeout_s
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {timeout_s:.0f} s waiting until {what}: {describe()}")
        time.sleep(0.02)


@dataclass
class Server:
    """A server process of ours that logs to a file."""

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def stop(self, sig: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(sig)
        return self.process.wait(STOP_TIMEOUT_S)

    def url(self) -> str:
        """The address from the newest ready line of the log."""

        def ready() -> str | None:
            assert self.process is not None
            text = self.log.read_text()
            assert self.process.poll() is None, f"{self.command} ended with {self.process.returncode}:\n{text[-3000:]}"
            found = re.findall(r"(?:ready|listening) on (http://127\.0\.0\.1:\d+)", text)
            return found[-1] if found else None

        return wait_until(ready, f"{self.command[0]} is ready", START_TIMEOUT_S)


@dataclass(frozen=True)
class Stack:
    """`deepseek-gateway up` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    admin_key: str
    user_key: str
    state: Path

    def key(self, *arguments: str) -> str:
        """Issue a key with the command line, as an operator does."""
        return issue_key(self.state, *arguments)


def issue_key(state: Path, *arguments: str) -> str:
    command = [program("deepseek-gateway"), "key", "create", "--state", str(state), "--json", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["key"]


def start_stack(state: Path, model: str) -> Stack:
    command = [program("deepseek-gateway"), "up", "--json", "--port", "0", "--state", str(state), "--model-path", model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"up ended with {process.wait()}"
    ready = json.loads(line)
    return Stack(process, ready["url"], ready["admin_key"], ready["user_key"], state)


def engine_counters(url: str) -> dict[str, float]:
    """The engine's own metrics, without labels and histograms."""
    text = httpx.get(f"{url}/metrics").text
    pattern = re.compile(r"^deepseek_engine_(\w+) ([0-9.e+-]+)$", re.MULTILINE)
    return {name: float(value) for name, value in pattern.findall(text)}
