"""Brings a journal's files to the disk, in a thread.

Waiters share one fdatasync; records that nobody waits for are synced in groups, a few milliseconds later. The thread
wakes the event loop only for those who wait: an executor's future would wake it after each sync.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from deepseek_gateway.errors import JournalError

GROUP_S = 0.005
"""Seconds in which records gather that nobody waits for, so that one sync takes many."""

Written = Callable[[], tuple[int, list[int], int]]
"""What is written: the number of the last record, descriptors of files that are written no more, and the current's."""


class DiskSync:
    """Syncs one journal, one time after the other. Its methods are for the event loop.

    Args:
        folder: where the files are.
        written: what is to be synced, as of now; what is written no more is closed then.
        failed: told in the thread of a disk that refuses.
    """

    def __init__(self, folder: Path, written: Written, failed: Callable[[str], None]) -> None:
        self._folder = folder
        self._written = written
        self._failed = failed
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._synced = 0
        self._is_busy = self._is_wanted = False
        self._lock = threading.Lock()
        """Held while the loop leaves a wish or the thread sees that there is none: no wish falls between the two."""
        self._jobs: SimpleQueue[tuple[asyncio.AbstractEventLoop, int, list[int], int] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._grouping: asyncio.TimerHandle | None = None

    async def durable(self, ticket: int) -> None:
        """Wait until the record with this number is on the disk.

        Raises:
            JournalError: the disk refused.
        """
        if ticket > self._synced:
            waiter = asyncio.get_running_loop().create_future()
            with self._lock:
                self._waiters.append((ticket, waiter))
            self._go_on()
            await waiter

    def begin(self) -> None:
        """Let the disk work while the request finds its engine: `durable` then waits less, or not at all."""
        with self._lock:
            self._is_wanted = True
        self._go_on()

    def soon(self) -> None:
        """Have what is written on the disk within `GROUP_S`, with all that is written until then."""
        if self._grouping is None:
            self._grouping = asyncio.get_running_loop().call_later(GROUP_S, self._sync_group)

    async def close(self) -> None:
        """Wait for what was begun, and end the thread."""
        if self._grouping is not None:
            self._grouping.cancel()
            self._grouping = None
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _sync_group(self) -> None:
        self._grouping = None
        self.begin()

    def _go_on(self) -> None:
        """Begin a sync, if one is wanted and none is at work."""
        with self._lock:
            if self._is_busy or not (self._waiters or self._is_wanted):
                return
            self._is_busy, self._is_wanted = True, False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
            self._thread.start()
        self._jobs.put((asyncio.get_running_loop(), *self._written()))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, ticket, retired, current = job
            error: OSError | None = None
            try:
                sync_files(retired, current, self._folder)
            except OSError as fault:
                error = fault
                self._failed(fault.strerror or str(fault))
            with self._lock:
                if error is None:
                    self._synced = ticket
                if not (self._waiters or self._is_wanted):
                    self._is_busy = False
                    continue
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._tell, ticket, error)

    def _tell(self, ticket: int, error: OSError | None) -> None:
        """Wake those who wait for a sync that is over, and begin the next one."""
        with self._lock:
            done = [waiter for number, waiter in self._waiters if number <= ticket]
            self._waiters = [(number, waiter) for number, waiter in self._waiters if number > ticket]
            self._is_busy = False
        for waiter in done:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(JournalError(f"the journal cannot be synced: {error.strerror}"))
        self._go_on()


def sync_files(retired: list[int], current: int, folder: Path) -> None:
    """Bring files to the disk, and close those that are written no more."""
    for descriptor in retired:
        os.fdatasync(descriptor)
        os.close(descriptor)
    os.fdatasync(current)
    if retired:  # the current file is new: its name must be on the disk too
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
