"""The processes of ranks 1 and up, from rank 0's side: spawned, spoken to, watched, ended."""

import contextlib
import logging
import socket
import subprocess
import sys
import threading
from typing import Final

import msgspec

from deepseek_engine.errors import EngineDeadError, ModelLoadError
from deepseek_engine.framing import FrameError, encode_frame
from deepseek_engine.messages import Message
from deepseek_engine.parallel.link import Link
from deepseek_engine.parallel.messages import FromRank, RankFailed

logger = logging.getLogger(__name__)

RANK_MODULE: Final = "deepseek_engine.parallel.rank_process"
_EXIT_S: Final = 5.0
"""How long the status of a rank that has closed its socket is waited for."""
_BLAME_S: Final = 2.0
"""How long a failed step waits for the news of a rank that has died: it is what the step failed of."""


class RankProcesses:
    """All of them. A rank ends when its socket closes, so none outlives this process, however it ends.

    Args:
        size: ranks in all.
        module: what they run; for tests.
    """

    def __init__(self, size: int, module: str = RANK_MODULE) -> None:
        self.size = size
        self._links: list[Link[FromRank]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._failure: str | None = None
        self._has_failed = threading.Event()
        self._is_closing = False
        self._lock = threading.Lock()
        try:
            for _ in range(1, size):
                self._spawn(module)
        except BaseException:
            self.close()
            raise

    @property
    def failure(self) -> str | None:
        """Why they cannot go on; None while they can."""
        return self._failure

    def send(self, rank: int, message: Message) -> None:
        """Send to one rank; if it is gone, what is received next says so."""
        with contextlib.suppress(OSError):
            self._links[rank - 1].send(message)

    def send_all(self, message: Message) -> None:
        """Send to all ranks.

        Raises:
            EngineDeadError: one is gone.
        """
        self.check()
        frame = encode_frame(message)
        for rank, link in enumerate(self._links, 1):
            try:
                link.send_frame(frame)
            except OSError as error:
                raise EngineDeadError(self.explain(f"{self._called(rank)} cannot be reached: {error}")) from error

    def check(self) -> None:
        """Raise EngineDeadError if they cannot go on."""
        if self._failure is not None:
            raise EngineDeadError(self._failure)

    def receive(self, rank: int) -> FromRank:
        """The next message of a rank, which is waited for; not once they are watched.

        Raises:
            ModelLoadError: it could not load its part.
            EngineDeadError: it failed otherwise, or is gone.
        """
        try:
            message = self._links[rank - 1].receive()
        except FrameError as error:
            raise EngineDeadError(self.fail(f"{self._called(rank)}: {error}")) from error
        if message is None:
            raise EngineDeadError(self.fail(self._how_it_ended(rank)))
        if isinstance(message, RankFailed):
            reason = self.fail(f"{self._called(rank)}: {message.reason}")
            raise ModelLoadError(reason) if message.is_refusal else EngineDeadError(reason)
        return message

    def watch(self) -> None:
        """Notice from now on when a rank fails or ends. Each is waited for by a thread, which costs nothing."""
        for rank in range(1, self.size):
            threading.Thread(target=self._watch, args=(rank,), name=f"rank {rank}", daemon=True).start()

    def fail(self, reason: str) -> str:
        """They cannot go on; the first reason stays, and is returned."""
        with self._lock:
            if self._failure is None and not self._is_closing:
                logger.critical("tensor parallelism has ended: %s", reason)
                self._failure = reason
                self._has_failed.set()
            return self._failure or reason

    def explain(self, reason: str) -> str:
        """They cannot go on, as seen from here for this reason; returned is what it came of, such as a rank's death."""
        self._has_failed.wait(_BLAME_S)
        return self.fail(reason)

    def close(self) -> None:
        """End them. A second call does nothing."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
        for link in self._links:
            with contextlib.suppress(OSError):  # it is no longer connected
                link.sock.shutdown(socket.SHUT_RDWR)
        for process in self._processes:
            process.kill()  # it has nothing to save, and one that hangs would not end by itself
        for process in self._processes:
            process.wait()
        for link in self._links:
            link.sock.close()

    def _spawn(self, module: str) -> None:
        ours, theirs = socket.socketpair()
        self._links.append(Link(ours, msgspec.msgpack.Decoder[FromRank](FromRank)))
        level = logging.getLevelName(logger.getEffectiveLevel())
        with theirs:
            # -P: the working directory is not a place to import modules from.
            command = [sys.executable, "-P", "-m", module, "--fd", str(theirs.fileno()), "--log-level", level]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))  # noqa: S603  our own module
        self._processes.append(process)

    def _watch(self, rank: int) -> None:
        with contextlib.suppress(EngineDeadError, ModelLoadError):  # it is told by `failure`
            while not self._is_closing:
                self.receive(rank)

    def _how_it_ended(self, rank: int) -> str:
        try:
            status = self._processes[rank - 1].wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return f"{self._called(rank)} has closed its socket"
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{self._called(rank)} {how}"

    def _called(self, rank: int) -> str:
        return f"rank {rank} of {self.size}"
