"""The core's watchdog: a thread that says that the core is there, and what it is doing when a step does not end.

Each beat it sends a `Heartbeat` and looks at the step under way. One that lasts longer than `step_timeout_s` has the
core's state written to the log, with the stacks of all threads; one that lasts longer than `step_exit_s` ends the
process, so that those who wait hear of it. So does the loss of another rank, between steps, and within one that would
wait for that rank. SIGUSR1 has the same written at any time.

Three things here work while the rest of the process does not. Signals come through a file descriptor, as Python runs
handlers in the main thread only, which may be in a kernel. Stacks are written by `faulthandler`, which needs no
interpreter. And each beat puts off a timer of its: where an extension keeps the interpreter's lock, so that this thread
cannot run either, it writes the stacks; the API process misses the heartbeats then, and ends the core.
"""

import faulthandler
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, NoReturn

from deepseek_engine.engine import Engine
from deepseek_engine.grammar.store import GrammarStore
from deepseek_engine.messages import Heartbeat

logger = logging.getLogger(__name__)

STUCK_STATUS: Final = 3
"""Exit status of a core that ended itself."""
LOST_STATUS: Final = 1
"""Exit status of a core that cannot compute any more."""
BEATS_A_TIMEOUT: Final = 4
"""A step's time is looked at at least so often within each limit."""


class StuckStep:
    """How long the step under way has lasted.

    It is told in beats, each worth no more than twice its length, so that a pause of this process is not a long step.
    """

    def __init__(self, timeout_s: float, exit_s: float, beat_s: float) -> None:
        self.seconds = 0.0
        self._timeout_s, self._exit_s, self._beat_s = timeout_s, exit_s, beat_s
        self._turn: int | None = None
        self._is_told = False

    def observe(self, turn: int | None, elapsed_s: float) -> Literal["dump", "exit"] | None:
        """A beat.

        Args:
            turn: what is under way; None between steps.
            elapsed_s: since the beat before.
        """
        if turn is None or turn != self._turn:
            self._turn, self.seconds, self._is_told = turn, 0.0, False
            return None
        self.seconds += min(elapsed_s, 2 * self._beat_s)
        if self.seconds >= self._exit_s:
            return "exit"
        if self.seconds >= self._timeout_s and not self._is_told:
            self._is_told = True
            return "dump"
        return None


class Watchdog:
    """Watches one engine from a thread of its own, a few times a second at most; `start` comes from the main thread.

    Args:
        engine: what is watched.
        grammars: its compiled grammars.
        send: sends a heartbeat, or drops it where that would block.
        step_timeout_s, step_exit_s, heartbeat_s: see `EngineConfig`.
    """

    def __init__(
        self,
        engine: Engine,
        grammars: GrammarStore,
        send: Callable[[Heartbeat], None],
        *,
        step_timeout_s: float,
        step_exit_s: float,
        heartbeat_s: float,
    ) -> None:
        self._engine = engine
        self._grammars = grammars
        self._send = send
        self._step_timeout_s = step_timeout_s
        self._beat_s = min(heartbeat_s, step_timeout_s / BEATS_A_TIMEOUT)
        self._step = StuckStep(step_timeout_s, step_exit_s, self._beat_s)
        self._num_dumps = 0

    def start(self) -> None:
        """Take over SIGUSR1 and begin."""
        signals, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.signal(signal.SIGUSR1, _note_nothing)  # so that Python writes it to the descriptor
        signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
        self._arm()  # here, since the thread may not come to its first beat: a step may keep the lock from it
        threading.Thread(target=self._run, args=(signals,), name="watchdog", daemon=True).start()

    def _run(self, signals: socket.socket) -> None:
        before_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            self._beat(now_s - before_s)
            before_s = now_s
            if select.select([signals], [], [], self._beat_s)[0] and signal.SIGUSR1 in signals.recv(64):
                self._dump("asked for by a signal")

    def _beat(self, elapsed_s: float) -> None:
        if (failure := self._engine.failure) is not None:
            self._end(LOST_STATUS, failure)
        journal = self._engine.journal
        verdict = self._step.observe(journal.turn if journal.is_stepping else None, elapsed_s)
        if verdict is not None:
            self._dump(f"a step has not ended for {self._step.seconds:.1f} s")
        self._send(self._heartbeat())
        if verdict == "exit":
            self._end(STUCK_STATUS, "the step does not end")
        self._arm()

    def _arm(self) -> None:
        _write_stacks_unless_again_within(self._step_timeout_s + 2 * self._beat_s)

    def _end(self, status: int, reason: str) -> NoReturn:
        logger.critical("the core ends itself with status %d: %s", status, reason)
        self._engine.close()  # another rank may hang so that it cannot notice
        logging.shutdown()
        os._exit(status)

    def _dump(self, reason: str) -> None:
        self._num_dumps += 1
        try:
            state = self._engine.describe()
        except Exception:  # the engine's thread may be changing what is read here
            logger.exception("the state cannot be read")
            state = "unknown"
        logger.critical("state of the engine core: %s; stacks of all threads follow\n%s", reason, state)
        write_stacks()

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            step_s=self._step.seconds,
            num_dumps=self._num_dumps,
            rss_bytes=_rss_bytes(),
            cpu_s=time.process_time(),
            steps=self._engine.journal.totals(),
            grammars=self._grammars.totals,
        )


def write_stacks() -> None:
    """Write the stacks of all threads to standard error."""
    if sys.stderr is not None:
        sys.stderr.flush()
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)


def _write_stacks_unless_again_within(seconds: float) -> None:
    if sys.stderr is not None:
        faulthandler.dump_traceback_later(seconds, file=sys.stderr)


def _note_nothing(number: int, frame: object) -> None:
    """The watchdog's thread does what there is to do."""


def _rss_bytes() -> int:
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return 0
