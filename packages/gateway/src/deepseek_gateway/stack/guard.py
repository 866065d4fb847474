"""A small process between gateway and engine: when the gateway is gone, however it went, the engine goes too.

`python -m deepseek_gateway.stack.guard LOCK -- command…`. The gateway holds the other end of this process's standard
input; the kernel closes it when the gateway dies. The engine runs in a session of its own, so that its whole process
group can be ended, workers included. LOCK stays locked as long as the engine lives: the next start waits for it.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 10.0
"""Seconds that the engine has to end by itself after SIGTERM."""

LOCK_TIMEOUT_S = 30.0
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the command until it ends, or until the gateway is gone; gives its status."""
    lock_path, _, *command = arguments
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _locked(lock):
        sys.stderr.write(f"an earlier engine still holds {lock_path} after {LOCK_TIMEOUT_S:g} s: end it first\n")
        return 1
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, _ignore)
    try:
        engine = subprocess.Popen(  # noqa: S603  the operator's own command
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
        )
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        return 127
    try:
        _wait(engine, wake_read)
    finally:
        _signal_group(engine, signal.SIGKILL)  # workers that outlived it
    return engine.wait() if engine.returncode is None else _status(engine.returncode)


def _wait(engine: subprocess.Popen[bytes], wake_read: int) -> None:
    """Return once the engine ended; SIGTERM or the end of standard input ends it, a second SIGTERM kills it."""
    watched = [wake_read, sys.stdin.fileno()]
    deadline: float | None = None
    while engine.poll() is None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select(watched, [], [], left)
        numbers = os.read(wake_read, 64) if wake_read in readable else b""
        is_gone = watched[-1] in readable and watched[-1] != wake_read and not os.read(watched[-1], 64)
        if is_gone:
            watched.pop()
        is_told = bool({signal.SIGTERM, signal.SIGINT} & set(numbers)) or is_gone
        if deadline is None and is_told:
            _signal_group(engine, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
        elif deadline is not None and (is_told or time.monotonic() >= deadline):
            _signal_group(engine, signal.SIGKILL)


def _locked(lock: int) -> bool:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _signal_group(engine: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(engine.pid, number)


def _die_with_parent() -> None:
    """On Linux: if this guard itself is killed, the kernel kills the engine."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ignore(*_: object) -> None:
    """The wake-up pipe has the signal's number."""


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
