"""The journal on disk, and what a start makes of it."""

import errno
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from deepseek_gateway.audit.life import Refusal
from deepseek_gateway.errors import ConfigurationError, JournalError, StoreConflictError, StoreUnavailableError
from deepseek_gateway.ledger import ledger as ledger_module
from deepseek_gateway.ledger.journal import Journal, read_segment
from deepseek_gateway.ledger.ledger import Ledger
from deepseek_gateway.ledger.records import Admission, LedgerRow, Settled, TokenCounts
from deepseek_gateway.ledger.recovery import recovered
from deepseek_gateway.limits.rules import Scope
from deepseek_gateway.storage.books import Books
from deepseek_gateway.storage.store import Store
from deepseek_gateway.testing.caller import until


def admission(name: str) -> Admission:
    return Admission(name, "key", "/v1/generate", "m", True, 1795392000.0)


def row(name: str, tokens: int = 5, attempt: int = 1) -> LedgerRow:
    return LedgerRow(
        request_id=name, attempt=attempt, key_id="key", route="/v1/generate", model="m", upstream="u", stream=True,
        status="finished", end_reason="stop", http_status=200, prompt_tokens=tokens, completion_tokens=1,
        cached_tokens=0, accuracy="exact", latency_ms=1.5, ttft_ms=None, created=1795392000.0,
    )  # fmt: skip


@asynccontextmanager
async def opened(folder: Path, store: Store) -> AsyncIterator[tuple[Ledger, Journal]]:
    journal = Journal(folder)
    with ThreadPoolExecutor(1) as executor:
        ledger = Ledger(journal, store.books, executor)
        await ledger.start()
        yield ledger, journal
        await ledger.close()


def records_on_disk(folder: Path) -> list[dict]:
    return [record for path in sorted(folder.glob("*.log")) for record in read_segment(path)]


async def test_a_settled_request_is_one_row_and_leaves_no_journal(tmp_path: Path, store: Store) -> None:
    async with opened(tmp_path / "j", store) as (ledger, _):
        await ledger.durable(ledger.admit(admission("r1")))
        ledger.observe("r1", 1, TokenCounts(3, 1, 0))
        ledger.settle(row("r1"))
        assert [record["kind"] for record in records_on_disk(tmp_path / "j")] == ["admit", "observe", "settle"]
    assert store.ledger.rows() == [row("r1")]
    assert records_on_disk(tmp_path / "j") == []


async def test_observations_are_written_at_once_the_first_time_and_then_once_a_second(
    tmp_path: Path, store: Store
) -> None:
    clock = [100.0]
    with ThreadPoolExecutor(1) as executor:
        ledger = Ledger(Journal(tmp_path / "j"), store.books, executor, wall=lambda: clock[0])
        await ledger.start()
        ledger.admit(admission("r1"))
        for seconds in (0, 0.5, 0.9, 1.1, 1.5, 2.2):
            clock[0] = 100 + seconds
            ledger.observe("r1", 1, TokenCounts(3, int(seconds * 10), 0))
        seen = [r["tokens"]["completion"] for r in records_on_disk(tmp_path / "j") if r["kind"] == "observe"]
        assert seen == [0, 11, 22]
        await ledger.close()


def test_orphans_are_billed_what_was_seen_and_marked() -> None:
    from deepseek_gateway.ledger.recovery import Observation, admit_record, observe_record, settle_record

    records = [
        admit_record(admission("unseen")),
        admit_record(admission("seen")),
        admit_record(admission("settled")),
        observe_record("seen", Observation(2, TokenCounts(7, 3, 1), 1795392002.0)),
        settle_record(Settled(row("settled"))),
    ]
    rows = {each.row.request_id: each.row for each in recovered(map(orjson.loads, map(orjson.dumps, records)))}
    assert rows["settled"] == row("settled")
    seen, unseen = rows["seen"], rows["unseen"]
    assert (seen.prompt_tokens, seen.completion_tokens, seen.cached_tokens, seen.attempt) == (7, 3, 1, 2)
    assert seen.latency_ms == pytest.approx(2000)
    assert (unseen.prompt_tokens, unseen.completion_tokens) == (0, 0)
    assert {(each.status, each.end_reason, each.accuracy) for each in (seen, unseen)} == {
        ("failed", "gateway_crash", "estimated")
    }


@pytest.mark.parametrize("cut", range(1, 40, 3))
async def test_a_torn_last_record_is_left_out_and_all_before_it_count(tmp_path: Path, store: Store, cut: int) -> None:
    journal = Journal(tmp_path / "j")
    journal.start_segment()
    journal.append({"kind": "settle", "n": 1})
    whole = journal.size
    journal.append({"kind": "settle", "n": 2, "padding": "x" * 50})
    await journal.close()
    (path,) = (tmp_path / "j").glob("*.log")
    os.truncate(path, whole + cut)
    assert [record["n"] for record in read_segment(path)] == [1]


@pytest.mark.parametrize("end", [b"\0" * 4096, b"\0" * 7, b"\0\0\0\5\0\0\0\0abc", b"\xff" * 4096, b'{"n": 9}\n'])
async def test_an_end_that_a_power_cut_left_is_no_record(
    tmp_path: Path, end: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "j")
    journal.start_segment()
    journal.append({"n": 1})
    await journal.close()
    (path,) = (tmp_path / "j").glob("*.log")
    path.write_bytes(path.read_bytes() + end)
    assert [record["n"] for record in read_segment(path)] == [1]
    assert f"an end of {len(end)} bytes" in caplog.text


async def test_a_record_that_a_bad_disk_changed_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "j")
    journal.start_segment()
    for number in range(3):
        journal.append({"n": number})
    await journal.close()
    (path,) = (tmp_path / "j").glob("*.log")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert [record["n"] for record in read_segment(path)] == [0, 2]
    assert "1 records that were changed" in caplog.text


async def test_a_second_process_cannot_have_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    with pytest.raises(ConfigurationError, match="another gateway"):
        Journal(tmp_path / "j")
    await journal.close()
    await Journal(tmp_path / "j").close()


async def test_a_full_disk_refuses_admissions_and_keeps_settlements(tmp_path: Path, store: Store, monkeypatch) -> None:
    async with opened(tmp_path / "j", store) as (ledger, journal):
        ledger.admit(admission("r1"))
        size, write = journal.size, os.write
        # Half of the record is written, as a disk that fills up does it.
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
        with pytest.raises(JournalError, match="cannot be written"):
            ledger.admit(admission("r2"))
        assert ledger.failure is not None
        ledger.settle(row("r1"))
        monkeypatch.undo()
        assert journal.size == size
        ledger.admit(admission("r3"))
        assert ledger.failure is None
        ledger.settle(row("r3"))
        assert [r.get("request_id") for r in records_on_disk(tmp_path / "j")] == ["r1", "r3", "r3"]
    assert {each.request_id for each in store.ledger.rows()} == {"r1", "r3"}


async def test_a_store_that_fails_gets_its_rows_later_and_once(tmp_path: Path, store: Store, monkeypatch) -> None:
    monkeypatch.setattr(ledger_module, "FLUSH_DELAY_S", 0.001)
    keep, calls = Books.keep, []

    def failing(books: Books, rows: list[Settled], refusals: list[Refusal]) -> None:
        calls.append(len(rows))
        if len(calls) < 3:
            raise StoreUnavailableError("the disk is gone")
        keep(books, rows, refusals)

    monkeypatch.setattr(Books, "keep", failing)
    async with opened(tmp_path / "j", store) as (ledger, _):
        ledger.admit(admission("r1"))
        ledger.settle(row("r1"))
        await until(lambda: len(calls) >= 3 and not ledger.pending_rows)
    assert calls[:3] == [1, 1, 1]
    assert store.ledger.rows() == [row("r1")]


async def test_too_many_rows_without_a_store_stop_admissions(tmp_path: Path, store: Store, monkeypatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_PENDING_ROWS", 2)
    async with opened(tmp_path / "j", store) as (ledger, _):
        for name in ("r1", "r2"):
            ledger.admit(admission(name))
            ledger.settle(row(name))
        with pytest.raises(JournalError, match="takes no rows"):
            ledger.admit(admission("r3"))


async def test_segments_are_replaced_and_running_requests_are_carried_over(
    tmp_path: Path, store: Store, monkeypatch
) -> None:
    monkeypatch.setattr(ledger_module, "SEGMENT_BYTES", 2000)
    async with opened(tmp_path / "j", store) as (ledger, journal):
        ledger.admit(admission("long"))
        ledger.observe("long", 1, TokenCounts(9, 4, 0))
        for number in range(50):
            ledger.admit(admission(f"r{number}"))
            ledger.settle(row(f"r{number}"))
            if number % 10 == 9:
                await ledger.flush()
        assert len(list((tmp_path / "j").glob("*.log"))) == 1
        assert journal.size < 4000
        # A crash now: what is on disk and in the store together is everything, once.
        orphans = [each.row for each in recovered(journal.read()) if each.row.status == "failed"]
        assert [(each.request_id, each.prompt_tokens) for each in orphans] == [("long", 9)]
        assert len(store.ledger.rows()) == 50
        ledger.settle(row("long"))


async def test_a_disk_that_is_full_when_a_segment_is_replaced_loses_no_row(
    tmp_path: Path, store: Store, monkeypatch
) -> None:
    monkeypatch.setattr(ledger_module, "SEGMENT_BYTES", 2000)
    async with opened(tmp_path / "j", store) as (ledger, journal):
        ledger.admit(admission("long"))
        for fault in ("open", "write"):
            for number in range(10):
                ledger.admit(admission(f"{fault}{number}"))
                ledger.settle(row(f"{fault}{number}"))
            with monkeypatch.context() as full:
                full.setattr(os, fault, no_room)
                await ledger.flush()
            assert ledger.pending_rows == 0
            recorded = [each.row.request_id for each in recovered(journal.read())]
            assert set(recorded) >= {"long", *(f"{fault}{number}" for number in range(10))}
            journal.probe()
            await until(lambda: ledger.failure is None)  # a sync may have met the fault too: the next one tells
        for number in range(20):
            ledger.admit(admission(f"r{number}"))
            ledger.settle(row(f"r{number}"))
        await ledger.flush()
        assert len(list((tmp_path / "j").glob("*.log"))) == 1
        assert [each.row.request_id for each in recovered(journal.read())] == ["long"]
        assert len(store.ledger.rows()) == 40
        ledger.settle(row("long"))


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_replaying_a_journal_twice_bills_once(tmp_path: Path, store: Store) -> None:
    store.ledger.insert([row("r1"), row("r2")])
    store.ledger.insert([row("r2", tokens=99), row("r3"), row("r1", attempt=2)])
    kept = {(each.request_id, each.attempt): each for each in store.ledger.rows()}
    assert kept["r2", 1] == row("r2")
    assert set(kept) == {("r1", 1), ("r1", 2), ("r2", 1), ("r3", 1)}


async def test_a_failed_batch_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(StoreConflictError):
        store.ledger.insert([row("r1"), replace(row("r2"), prompt_tokens=-1)])
    assert store.ledger.rows() == []
    store.ledger.insert([row("r1")])
    assert len(store.ledger.rows()) == 1


async def test_a_closed_journal_writes_to_nobodys_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.start_segment()
    journal.append({"t": "a"})
    await journal.close()
    others = [os.memfd_create(f"other{number}") for number in range(8)]  # they get the numbers that are free now
    for other in others:
        os.write(other, b"theirs")
    with pytest.raises(JournalError, match="closed"):
        journal.append({"t": "b"})
    assert [os.pread(other, 99, 0) for other in others] == [b"theirs"] * 8
    for other in others:
        os.close(other)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(), 30),
        (Scope(key_id="key"), 12),
        (Scope(key_id="other", org_id="acme"), 18),
        (Scope(org_id="none"), 0),
        (Scope(model="m"), 12),
        (Scope(model="big*"), 18),
        (Scope(user_id="ann", team_id="red"), 18),
    ],
)
async def test_what_was_spent_is_whole_once_the_rows_of_its_scope_are_brought_in(
    tmp_path: Path, store: Store, scope: Scope, expected: int
) -> None:
    owners = {"key_id": "other", "org_id": "acme", "team_id": "red", "user_id": "ann", "model": "big-one"}
    async with opened(tmp_path / "j", store) as (ledger, _):
        for number in range(2):
            for settled in (row(f"a{number}"), replace(row(f"b{number}", tokens=8), **owners)):
                ledger.admit(admission(settled.request_id))
                ledger.settle(settled)
        await ledger.flush_of(scope)
        assert store.ledger.spent(scope, "tokens", 0, 2e9) == expected


async def test_a_kill_at_any_moment_as_segments_are_replaced_finds_every_request_once(
    tmp_path: Path, store: Store, monkeypatch
) -> None:
    """What the files and the store say is looked at after every write, before and after every commit and deletion."""
    monkeypatch.setattr(ledger_module, "SEGMENT_BYTES", 1500)
    folder, looks = tmp_path / "j", 0
    admitted: set[str] = set()
    settled: dict[str, LedgerRow] = {}

    def look() -> None:
        nonlocal looks
        looks += 1
        found = {each.row.request_id: each.row for each in recovered(records_on_disk(folder))}
        kept = {each.request_id: each for each in store.ledger.rows()}
        assert admitted <= {*found, *kept}
        for name, whole in settled.items():
            assert kept.get(name, whole) == whole
            # One that is in both is the same attempt, which the store takes once.
            assert name in kept or found[name] == whole
            assert name not in found or found[name].attempt == whole.attempt

    write, unlink, keep = os.write, Path.unlink, Books.keep

    def looked_at(call):
        def run(*arguments):
            look()
            result = call(*arguments)
            look()
            return result

        return run

    async with opened(folder, store) as (ledger, _):
        ledger.admit(admission("long"))
        admitted.add("long")
        monkeypatch.setattr(os, "write", looked_at(write))
        monkeypatch.setattr(Path, "unlink", looked_at(unlink))
        monkeypatch.setattr(Books, "keep", looked_at(keep))
        for number in range(12):
            name = f"r{number}"
            ledger.admit(admission(name))
            admitted.add(name)
            ledger.observe("long", 1, TokenCounts(9, number, 0))
            ledger.settle(row(name, attempt=1 + number % 2))
            settled[name] = row(name, attempt=1 + number % 2)
            if number % 3 == 2:
                await ledger.flush()
        ledger.settle(row("long"))
        settled["long"] = row("long")
    look()
    monkeypatch.undo()
    assert looks > 60
    assert {each.request_id: each for each in store.ledger.rows()} == settled
