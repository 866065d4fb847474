"""The file under a request log: its parts, its bound, and disks that do not take it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_engine.errors import InvalidRequestError
from deepseek_engine.request_log.log_file import MAX_PENDING_BYTES, MIN_MAX_BYTES, NUM_PARTS, LogFile

HEADER = b"header\n"


def written(path: Path, lines: list[bytes], max_bytes: int = MIN_MAX_BYTES) -> LogFile:
    log = LogFile(path, max_bytes)
    log.begin(HEADER)
    for line in lines:
        log.write(line)
    log.close()
    return log


def parts_of(path: Path) -> list[Path]:
    """The oldest first."""
    return sorted(path.parent.glob(f"{path.name}*"), reverse=True)


def test_lines_come_in_their_order_behind_a_header_and_are_the_owners_alone(tmp_path: Path):
    log = written(tmp_path / "log", [b"%d\n" % i for i in range(1000)])
    assert (tmp_path / "log").read_bytes() == HEADER + b"".join(b"%d\n" % i for i in range(1000))
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    assert log.num_lost == 0


def test_a_full_part_is_followed_by_another_and_all_parts_together_keep_the_bound(tmp_path: Path):
    path = tmp_path / "log"
    lines = [b"%08d %s\n" % (i, b"x" * 90) for i in range(3000)]  # 300 kB into 64 KiB
    assert written(path, lines).num_lost == 0
    parts = parts_of(path)
    assert [part.name for part in parts] == ["log.3", "log.2", "log.1", "log"]
    assert sum(part.stat().st_size for part in parts) <= MIN_MAX_BYTES
    contents = [part.read_bytes() for part in parts]
    assert all(content.startswith(HEADER) for content in contents)
    kept = b"".join(content.removeprefix(HEADER) for content in contents).splitlines(keepends=True)
    assert kept == lines[-len(kept) :], "the newest lines are kept, whole and in order"
    assert len(kept) > 400


def test_a_start_begins_a_new_part_and_keeps_the_ones_before(tmp_path: Path):
    path = tmp_path / "log"
    for start in range(NUM_PARTS + 1):
        written(path, [b"start %d\n" % start])
    assert [part.read_bytes() for part in parts_of(path)] == [HEADER + b"start %d\n" % i for i in (1, 2, 3, 4)]


def test_a_full_disk_loses_whole_lines_counts_them_and_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    log = LogFile(tmp_path / "log", MIN_MAX_BYTES)
    log.begin(HEADER)
    write, has_room = os.write, False

    def write_on_full_disk(fd: int, data: memoryview) -> int:
        if has_room:
            return write(fd, data)
        if len(data) > 3:  # a part of a line still goes in
            return write(fd, data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write_on_full_disk)
    for line in (b"lost 1\n", b"lost 2\n"):
        with pytest.raises(OSError, match="No space") as caught:
            log._store([line])
        log._lose(1, caught.value)
    has_room = True
    log.write(b"kept\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == HEADER + b"kept\n"
    assert log.num_lost == 2
    assert len([record for record in caplog.records if "No space left" in record.message]) == 1


def test_lines_that_a_slow_disk_does_not_take_in_time_are_lost_instead_of_filling_the_memory(tmp_path: Path):
    log = LogFile(tmp_path / "log")
    megabyte = b"x" * 2**20  # nothing is written before begin()
    for _ in range(MAX_PENDING_BYTES // 2**20 + 3):
        log.write(megabyte)
    assert log.num_lost == 3


def test_a_file_that_another_process_writes_is_refused(tmp_path: Path):
    path = tmp_path / "log"
    code = (
        "import sys; from deepseek_engine.request_log.log_file import LogFile; log = LogFile(sys.argv[1]);"
        "log.begin(b'theirs\\n'); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(InvalidRequestError, match="another process is writing it"):
            LogFile(path).begin(HEADER)
        other.kill()
    written(path, [])
    assert (tmp_path / "log.1").read_bytes() == b"theirs\n"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(InvalidRequestError, match=r"request_log=/absent/log: its folder is not there"):
        LogFile("/absent/log")
    with pytest.raises(InvalidRequestError, match="not a regular file"):
        LogFile(tmp_path)
    with pytest.raises(InvalidRequestError, match="request_log_max_bytes=1000: it must be at least 65536"):
        LogFile(tmp_path / "log", 1000)
