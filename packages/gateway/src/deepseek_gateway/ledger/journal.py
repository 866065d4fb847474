"""An append-only file of checksummed JSON lines: what a kill or a power cut must not lose.

A record is `length (4 bytes) + CRC-32 (4 bytes) + JSON + LF`, big-endian. `append` hands it to the kernel at once, so
that it outlives this process; `disk` brings it to the disk, so that it outlives the machine.
"""

import contextlib
import errno
import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from deepseek_gateway.errors import ConfigurationError, JournalError
from deepseek_gateway.ledger.disk import DiskSync

logger = logging.getLogger(__name__)

MAX_RECORD_BYTES = 64 * 1024

_HEAD = struct.Struct(">II")
_PROBE = b"\xff" * 4096
"""What is written to see whether there is room. Were it left there, a reader would take it for a torn end."""

Record = dict[str, Any]


class Journal:
    """The journal of one gateway process, in segments `00000001.log`, `00000002.log`, … of a folder.

    Raises:
        ConfigurationError: another process uses the folder, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(f"the journal {folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it however we die
        except OSError:
            os.close(self._lock_fd)
            raise ConfigurationError(f"another gateway uses {folder}: give each its own state directory") from None
        self._folder = folder
        self._sequence = max((_sequence_of(path) for path in _segments(folder)), default=0)
        self._retired_fds: list[int] = []
        self._fd = -1
        self._size = 0
        self._written = 0
        self.disk = DiskSync(folder, self._to_sync)
        self._failure: str | None = None
        self._is_torn = False

    @property
    def failure(self) -> str | None:
        """Why the last record could not be written, or brought to the disk; None while all is well."""
        return self._failure or self.disk.failure

    @property
    def size(self) -> int:
        """Bytes in the segment that is written now."""
        return self._size

    def read(self) -> Iterator[Record]:
        """All records on disk, the oldest first; a torn end of a segment is left out."""
        for path in _segments(self._folder):
            yield from read_segment(path)

    def start_segment(self, carried: Iterable[Record] = ()) -> int:
        """Go on in a new file that begins with `carried`; gives its number, for `drop_before`.

        Raises:
            JournalError: the disk is full or broken; nothing older may be dropped.
        """
        path = self._folder / f"{self._sequence + 1:08d}.log"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except OSError as error:
            self._failure = error.strerror
            raise JournalError(f"the journal cannot be written: {error.strerror}") from error
        if self._fd >= 0:
            self._retired_fds.append(self._fd)
        self._fd, self._size, self._is_torn = descriptor, 0, False
        self._sequence += 1
        for record in carried:
            self.append(record)
        return self._sequence

    def drop_before(self, sequence: int) -> None:
        """Delete older segments, the oldest first: what is left is always the journal's end."""
        for path in _segments(self._folder):
            if _sequence_of(path) < sequence:
                path.unlink()

    def append(self, record: Record) -> int:
        """Write a record to the file; gives its number for `disk.durable`.

        Raises:
            JournalError: the disk is full or broken; the file is as it was before.
        """
        payload = orjson.dumps(record) + b"\n"
        if len(payload) > MAX_RECORD_BYTES:  # a reader would take it for the torn end of the file
            raise JournalError(f"a record of {len(payload)} bytes is longer than {MAX_RECORD_BYTES}")
        data = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        if self._fd < 0:
            raise JournalError("the journal is closed")
        try:
            self._cut_back()
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"{written} of {len(data)} bytes were written")  # noqa: TRY301  same clean-up
        except OSError as error:
            self._failure, self._is_torn = error.strerror, True
            with contextlib.suppress(OSError):  # then the next record waits until it can be cut
                self._cut_back()
            raise JournalError(f"the journal cannot be written: {error.strerror}") from error
        self._failure = None
        self._size += len(data)
        self._written += 1
        return self._written

    def probe(self) -> None:
        """After a failure: see whether there is room again. No request would: none comes to who is not ready."""
        if self.failure is None or self._fd < 0:
            return
        try:
            self._cut_back()
            self._is_torn = True
            written = os.write(self._fd, _PROBE)
            self._cut_back()
            self._failure = None if written == len(_PROBE) else os.strerror(errno.ENOSPC)
        except OSError as error:
            self._failure = error.strerror
        self.disk.begin()

    async def sync(self) -> None:
        """Wait until everything written so far is on the disk.

        Raises:
            JournalError: the disk refused.
        """
        await self.disk.durable(self._written)

    async def close(self) -> None:
        """Write everything to the disk and let the folder go."""
        with contextlib.suppress(JournalError):
            await self.sync()
        await self.disk.close()
        descriptors = (*self._retired_fds, self._fd, self._lock_fd)
        self._retired_fds, self._fd = [], -1  # the number may soon be another file's: nothing may be written to it
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    def _to_sync(self) -> tuple[int, list[int], int]:
        retired, self._retired_fds = self._retired_fds, []
        return self._written, retired, self._fd

    def _cut_back(self) -> None:
        """Cut off what a failed write may have left: a reader would take it for the end, and leave out all behind it.

        Raises:
            OSError: it cannot be cut.
        """
        if self._is_torn:
            os.ftruncate(self._fd, self._size)
            self._is_torn = False


def read_segment(path: Path) -> Iterator[Record]:
    """The records of one file, without those that a bad disk changed, up to where a crash interrupted a write.

    After a power cut such an end is a part of a record, or the file is longer than what was written, and zero there.
    """
    data = path.read_bytes()
    at, num_bad = 0, 0
    while at + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, at)
        payload = data[at + _HEAD.size : at + _HEAD.size + length]
        if length > MAX_RECORD_BYTES or len(payload) != length or not payload.endswith(b"\n"):
            break
        at += _HEAD.size + length
        if zlib.crc32(payload) == checksum:
            yield orjson.loads(payload)
        else:
            num_bad += 1
    if num_bad or at < len(data):
        message = "the journal's %s has %d records that were changed and an end of %d bytes that is none: left out"
        logger.warning(message, path, num_bad, len(data) - at)


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.log"))


def _sequence_of(path: Path) -> int:
    return int(path.stem)
