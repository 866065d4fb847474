"""A journal on a disk that refuses: to sync, to cut a file, to make one."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_gateway.errors import JournalError
from deepseek_gateway.ledger.journal import Journal, read_segment
from deepseek_gateway.testing.caller import until


def refuse(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def numbers(folder: Path) -> list[int]:
    return [record["n"] for path in sorted(folder.glob("*.log")) for record in read_segment(path)]


async def test_what_a_failed_sync_may_have_lost_is_never_called_durable(tmp_path: Path, monkeypatch) -> None:
    journal = Journal(tmp_path)
    journal.start_segment()
    await journal.disk.durable(journal.append({"n": 0}))
    monkeypatch.setattr(os, "fdatasync", refuse)
    tickets = [journal.append({"n": number}) for number in (1, 2)]
    journal.disk.begin()
    await until(lambda: journal.failure is not None)
    with pytest.raises(JournalError, match="cannot be synced"):
        await journal.disk.durable(tickets[0])
    monkeypatch.undo()
    journal.probe()  # the gateway's clock does it: nobody need ask for the journal to heal
    await until(lambda: journal.failure is None)
    for ticket in tickets:
        with pytest.raises(JournalError, match="may be lost"):
            await journal.disk.durable(ticket)
    await journal.disk.durable(journal.append({"n": 3}))
    await journal.close()


async def test_a_disk_that_takes_records_and_syncs_none_stays_broken(tmp_path: Path, monkeypatch) -> None:
    journal = Journal(tmp_path)
    journal.start_segment()
    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(JournalError):
        await journal.disk.durable(journal.append({"n": 1}))
    for number in range(3):
        journal.probe()
        journal.append({"n": number})
        assert journal.failure is not None
    monkeypatch.undo()
    await journal.close()


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_a_segment_that_could_not_be_synced_when_it_was_replaced_is_synced_later_and_closed(
    tmp_path: Path, monkeypatch, call: str
) -> None:
    journal = Journal(tmp_path)
    journal.start_segment()
    journal.append({"n": 1})
    old = journal._fd
    journal.start_segment()
    real: Callable[[int], None] = getattr(os, call)
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(JournalError):
        await journal.disk.durable(journal.append({"n": 2}))
    synced: list[int] = []
    monkeypatch.setattr(os, call, lambda fd: (synced.append(fd), real(fd)))
    journal.probe()
    await until(lambda: journal.failure is None)
    await journal.disk.durable(journal.append({"n": 3}))
    assert (old in synced) if call == "fdatasync" else synced
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(old)
    await journal.close()
    assert numbers(tmp_path) == [1, 2, 3]


async def test_a_record_is_never_written_behind_one_that_could_not_be_cut_off(tmp_path: Path, monkeypatch) -> None:
    journal = Journal(tmp_path)
    journal.start_segment()
    journal.append({"n": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(JournalError):
        journal.append({"n": 2})
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(JournalError):  # a reader would not find it
        journal.append({"n": 3})
    journal.probe()  # raises nothing
    assert journal.failure is not None
    monkeypatch.undo()
    journal.probe()
    journal.append({"n": 4})
    await journal.close()
    assert numbers(tmp_path) == [1, 4]


async def test_the_name_of_the_first_segment_is_on_the_disk_before_its_records_are_durable(
    tmp_path: Path, monkeypatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), fsync(fd)))
    journal = Journal(tmp_path)
    journal.start_segment()
    await journal.disk.durable(journal.append({"n": 1}))
    assert synced == [os.stat(tmp_path).st_ino]  # noqa: PTH116  once
    await journal.close()


async def test_closing_while_a_sync_is_at_work_waits_for_it_and_begins_none(tmp_path: Path, monkeypatch) -> None:
    journal = Journal(tmp_path)
    journal.start_segment()
    await journal.disk.durable(journal.append({"n": 1}))
    may_go_on, fdatasync, calls = threading.Event(), os.fdatasync, []

    def slow(fd: int) -> None:
        calls.append(fd)
        assert may_go_on.wait(30)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    journal.append({"n": 2})
    journal.disk.begin()
    await until(lambda: len(calls) == 1)
    closing = asyncio.create_task(journal.close())
    await asyncio.sleep(0)
    journal.disk.begin()
    may_go_on.set()
    await closing
    assert not [thread for thread in threading.enumerate() if thread.name == "journal-sync"]
    assert numbers(tmp_path) == [1, 2]
