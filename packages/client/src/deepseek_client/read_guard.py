"""ReadGuard: a moving deadline over the blocking reads of one socket."""

import contextlib
import socket
import threading
import time


class ReadGuard:
    """Ends a blocking read at its deadline, by shutting the socket down from a thread of its own.

    The HTTP library fixes the read timeout of a body when the body begins, and a keep-alive comment re-arms it; a
    stream needs limits that change with each event. Costs one sleeping thread a stream, started with the first
    deadline; a read that comes in time costs a lock.

    Args:
        sock: the socket that the reads block on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.is_expired = False
        self._socket = sock
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._wakes_at = 0.0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def arm(self, deadline: float) -> None:
        """The read that follows must end by `deadline`, on the monotonic clock."""
        with self._changed:
            self._deadline = deadline
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="deepseek-read-guard", daemon=True)
                self._thread.start()
            elif deadline < self._wakes_at:
                self._changed.notify()

    def disarm(self) -> None:
        """The read has returned."""
        with self._changed:
            self._deadline = None

    def close(self, *, cut: bool) -> None:
        """Never touch the socket again: it may soon serve another request. `cut` ends a read that blocks on it now."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            if cut:
                self._shut_down()

    def _watch(self) -> None:
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                if self._deadline is not None and self._deadline <= now:
                    self.is_expired = True
                    self._shut_down()
                    return
                # Between reads there is no deadline; arm() wakes the thread for one that is sooner than this.
                self._wakes_at = self._deadline if self._deadline is not None else now + 60
                self._changed.wait(self._wakes_at - now)

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):
            # Of the plain class: ssl's own shutdown would pull the session from under the reader.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
