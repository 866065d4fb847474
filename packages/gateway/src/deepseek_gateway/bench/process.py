"""Processes of the benchmark, and what the kernel says that they use. Linux only: it reads /proc."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from deepseek_gateway.errors import GatewayError

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(GatewayError):
    """Something that the benchmark needs does not run."""


class Child:
    """A process in a group of its own; its output goes to a file, whose end explains a failure."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.name = name
        self._log = tempfile.NamedTemporaryFile(prefix=f"bench-{name}-", suffix=".log")  # noqa: SIM115  lives with us
        self.started_s = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603  commands of this benchmark
            list(command),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
        )

    def url(self) -> str:
        """The URL after `listening on`, once it is printed.

        Raises:
            BenchError: it never is.
        """
        while True:
            self.check()
            for line in Path(self._log.name).read_text(errors="replace").splitlines():
                if line.startswith("listening on "):
                    return line.removeprefix("listening on ").split(" ")[0]
            time.sleep(0.005)

    def check(self) -> None:
        """See that it runs, and is not late.

        Raises:
            BenchError: it ended, or does not answer within 3 minutes.
        """
        is_late = time.perf_counter() - self.started_s > START_TIMEOUT_S
        if self._process.poll() is not None or is_late:
            tail = Path(self._log.name).read_text(errors="replace")[-2000:]
            raise BenchError(f"{self.name} {'does not answer' if is_late else 'ended'}:\n{tail}")

    def cpu_s(self) -> float:
        """CPU seconds of it and its descendants so far, user and system."""
        return sum(_cpu_s(pid) for pid in _tree(self._process.pid))

    def rss_mib(self) -> float:
        """Resident memory of it and its descendants."""
        return sum(_rss_mib(pid) for pid in _tree(self._process.pid))

    def stop(self) -> None:
        """SIGTERM, then SIGKILL; harmless to repeat."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._log.close()


def _tree(pid: int) -> list[int]:
    found, waiting = list[int](), [pid]
    while waiting:
        found.append(waiting.pop())
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{found[-1]}/task"):  # noqa: PTH208  names are what is wanted
                children = Path(f"/proc/{found[-1]}/task/{task}/children").read_text()
                waiting += map(int, children.split())
    return found


def _cpu_s(pid: int) -> float:
    """By the scheduler's nanoseconds where the kernel has them; ticks of 10 ms otherwise."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError, ValueError):
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _rss_mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return 0.0
