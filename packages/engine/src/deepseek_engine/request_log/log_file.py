"""A log file that is written by a thread of its own, bounded in size, and that a full disk does not stop.

FILE is the part being written, FILE.1 to FILE.3 are older ones. A start begins a new part, and so does a part that is
full. Whoever writes a line never waits for the disk: what it cannot take in time is lost and counted.
"""

import atexit
import contextlib
import fcntl
import logging
import os
import threading
from pathlib import Path
from typing import Final

from deepseek_engine.errors import InvalidRequestError

logger = logging.getLogger(__name__)

NUM_PARTS: Final = 4
DEFAULT_MAX_BYTES: Final = 256 * 2**20
MIN_MAX_BYTES: Final = 2**16
MAX_PENDING_BYTES: Final = 64 * 2**20
"""Lines that wait for a slow disk."""
CLOSE_S: Final = 5.0
"""How long a disk may take to get the last lines."""


class LogFile:
    """Lines in; nothing is written before `begin`.

    Args:
        path: the newest part.
        max_bytes: of all parts together. A line that is longer than a part exceeds it by its length.

    Raises:
        InvalidRequestError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.path = Path(path).absolute()
        if max_bytes < MIN_MAX_BYTES:
            raise InvalidRequestError(
                f"request_log_max_bytes={max_bytes}: it must be at least {MIN_MAX_BYTES}", param="request_log_max_bytes"
            )
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise self._unusable("its folder is not there or cannot be written to")
        if self.path.exists() and not self.path.is_file():
            raise self._unusable("it is not a regular file")
        self._part_bytes = max_bytes // NUM_PARTS
        self._header = b""
        self._fd: int | None = None
        self._size = 0
        self._changed = threading.Condition()
        self._lines: list[bytes] = []
        self._num_pending_bytes = 0
        self._num_lost = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @property
    def num_lost(self) -> int:
        """Lines that could not be written."""
        return self._num_lost

    def begin(self, header: bytes) -> None:
        """Start a new part, with a line that every part begins with.

        Raises:
            InvalidRequestError: the file cannot be written, or another process is writing it.
        """
        self._header = header
        try:
            self._check_unlocked()
            self._open_part()
        except OSError as error:
            raise self._unusable(str(error)) from error
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, line: bytes) -> None:
        """Append a line, soon."""
        with self._changed:
            if self._is_closed or self._num_pending_bytes + len(line) > MAX_PENDING_BYTES:
                self._num_lost += 1
                return
            self._lines.append(line)
            self._num_pending_bytes += len(line)
            self._changed.notify()

    def close(self) -> None:
        """Write what is left; lines that come later are lost."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        atexit.unregister(self.close)

    def _run(self) -> None:
        while lines := self._next_lines():
            num_bytes = sum(map(len, lines))
            try:
                self._store(lines)
            except OSError as error:
                self._lose(len(lines), error)
            with self._changed:
                self._num_pending_bytes -= num_bytes
        if self._fd is not None:
            os.close(self._fd)

    def _next_lines(self) -> list[bytes]:
        """All lines that wait, once there is one; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._is_closed)
            lines, self._lines = self._lines, []
            return lines

    def _lose(self, num_lines: int, error: OSError) -> None:
        with self._changed:
            is_first = not self._num_lost
            self._num_lost += num_lines
        if is_first:
            logger.error("the request log %s loses lines, which are counted from now on: %s", self.path, error)

    def _store(self, lines: list[bytes]) -> None:
        """Write lines and take them off the list as they are written."""
        while lines:
            if self._fd is None or (self._size > len(self._header) and self._size + len(lines[0]) > self._part_bytes):
                self._open_part()
            count, num_bytes = 1, len(lines[0])
            while count < len(lines) and self._size + num_bytes + len(lines[count]) <= self._part_bytes:
                num_bytes += len(lines[count])
                count += 1
            if not self._size:
                self._append(self._header)  # there was no room for it when the part was opened
            self._append(b"".join(lines[:count]))
            del lines[:count]

    def _open_part(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self.path.exists() and self.path.stat().st_size:
            for number in range(NUM_PARTS - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    self._part(number - 1).replace(self._part(number))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        self._fd, self._size = os.open(self.path, flags, 0o600), 0
        os.fchmod(self._fd, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._append(self._header)

    def _append(self, data: bytes) -> None:
        assert self._fd is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)  # half a line would spoil the next one
            raise
        self._size += len(data)

    def _check_unlocked(self) -> None:
        if self.path.exists():
            with self.path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise self._unusable("another process is writing it") from None

    def _part(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def _unusable(self, reason: str) -> InvalidRequestError:
        return InvalidRequestError(f"request_log={self.path}: {reason}", param="request_log")
