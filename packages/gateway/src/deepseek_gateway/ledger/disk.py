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
    """

    def __init__(self, folder: Path, written: Written) -> None:
        self._folder = folder
        self._written = written
        self.failure: str | None = None
        """Why the last sync failed, or None."""
        self._doubtful = range(0)
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._synced = 0
        self._is_busy = self._is_wanted = self._is_closed = False
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
        with self._lock:
            if ticket in self._doubtful:
                raise _refusal(self.failure)
            if ticket <= self._synced:
                return
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
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
        self._is_closed = True
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
            if self._is_busy or self._is_closed or not (self._waiters or self._is_wanted):
                return
            self._is_busy, self._is_wanted = True, False
            ticket, retired, current = self._written()
            if self.failure is not None:
                # The kernel tells once of a page that it could not write, and drops it: that this sync succeeds will
                # say nothing about records of before.
                self._doubtful = range(self._synced + 1, ticket + 1)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
            self._thread.start()
        self._jobs.put((asyncio.get_running_loop(), ticket, retired, current))

    def _run(self) -> None:
        retired, is_named = list[int](), False
        while (job := self._jobs.get()) is not None:
            loop, ticket, more, current = job
            retired += more  # behind those that an earlier sync failed at
            is_named = is_named and not more
            error: OSError | None = None
            try:
                sync_files(retired, current, None if is_named else self._folder)
                is_named = True
            except OSError as fault:
                error = fault
            with self._lock:
                if error is None:
                    self._synced, self.failure = ticket, None
                else:
                    self.failure = error.strerror or str(error)
                    self._doubtful = range(self._synced + 1, ticket + 1)
                if not (self._waiters or self._is_wanted):
                    self._is_busy = False
                    continue
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._tell, ticket, error)

        for descriptor in retired:
            os.close(descriptor)

    def _tell(self, ticket: int, error: OSError | None) -> None:
        """Wake those who wait for a sync that is over, and begin the next one."""
        with self._lock:
            done = [(number in self._doubtful, waiter) for number, waiter in self._waiters if number <= ticket]
            self._waiters = [(number, waiter) for number, waiter in self._waiters if number > ticket]
            self._is_busy = False
        for is_doubtful, waiter in done:
            if waiter.done():
                continue
            if error is None and not is_doubtful:
                waiter.set_result(None)
            else:
                waiter.set_exception(_refusal(self.failure))
        self._go_on()


def _refusal(failure: str | None) -> JournalError:
    return JournalError(f"the journal cannot be synced: {failure or 'a record may be lost'}")


def sync_files(retired: list[int], current: int, folder: Path | None) -> None:
    """Bring files to the disk, and close those that are written no more; with the `folder` where a file is new.

    Raises:
        OSError: the disk refused; what is left in the list was not brought there.
    """
    for descriptor in retired:
        os.fdatasync(descriptor)
    os.fdatasync(current)
    if folder is not None:  # the current file's name must be on the disk too
        folder_fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
    while retired:
        os.close(retired.pop())
