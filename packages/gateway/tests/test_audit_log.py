"""The audit log in a store: appended to, never changed, one chain for all nodes."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deepseek_gateway.audit.actor import Actor
from deepseek_gateway.errors import StoreConflictError, StoreUnavailableError
from deepseek_gateway.storage.audit import AuditFilter
from deepseek_gateway.storage.store import Store, open_database
from deepseek_gateway.testing.tampering import tamper

ANNA = Actor("session:anna", "req-1")


def record(store: Store, subject: str, action: str = "key.create", **values: Any) -> None:
    with store.database.transaction() as transaction:
        store.audit.record(transaction, ANNA, action, subject, **values)


def record_and_fail(store: Store) -> None:
    with store.database.transaction() as transaction:
        store.audit.record(transaction, ANNA, "key.create", "k1")
        _ = 1 / 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite3"


def test_acts_are_listed_newest_first_and_without_secrets(store: Store) -> None:
    record(store, "k1", after={"name": "app", "secret_hash": "aa"})
    record(store, "k1", "key.revoke", before={"revoked": None}, after={"revoked": 5.0})
    record(store, "k2", policy_version="p7", list_version="w3")
    newest, revoked, created = store.audit.listing(AuditFilter(), 10)
    assert (created.actor, created.action, created.subject, created.request_id) == (
        "session:anna",
        "key.create",
        "k1",
        "req-1",
    )
    assert created.after == '{"name":"app","secret_hash":"…"}'
    assert (revoked.before, revoked.after) == ('{"revoked":null}', '{"revoked":5.0}')
    assert (newest.policy_version, newest.list_version) == ("p7", "w3")
    assert [entry.subject for entry in store.audit.listing(AuditFilter(action="key.r*"), 10)] == ["k1"]
    assert [entry.sequence for entry in store.audit.listing(AuditFilter(subject="k1"), 10)] == [2, 1]
    assert [entry.sequence for entry in store.audit.listing(AuditFilter(actor="session:anna"), 1, before=3)] == [2]
    assert store.audit.listing(AuditFilter(until=1.0), 10) == store.audit.listing(AuditFilter(action="x"), 10) == []
    assert store.audit.verify() == (3, None)


def test_an_act_that_is_rolled_back_is_not_in_the_log(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        record_and_fail(store)
    record(store, "k2")
    assert [entry.subject for entry in store.audit.entries()] == ["k2"]
    assert store.audit.verify() == (1, None)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE audit_log SET actor = 'cli:eve'",
        "DELETE FROM audit_log",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET hash = 'x'",
        "UPDATE audit_head SET sequence = 0",
    ],
)
def test_the_database_refuses_to_change_the_log(store: Store, sql: str) -> None:
    record(store, "k1")
    with pytest.raises((StoreConflictError, StoreUnavailableError), match=r"append-only|only grows"):
        store.database.write(sql)
    assert store.audit.verify() == (1, None)


def test_postgresql_refuses_to_empty_the_log(store: Store) -> None:
    if store.database.kind != "postgresql":
        pytest.skip("SQLite has no TRUNCATE")
    for table in ("audit_log", "audit_head", "request_lives"):
        with pytest.raises(StoreConflictError, match="append-only"):
            store.database.write(f"TRUNCATE {table}")


def test_nodes_that_write_at_once_make_one_chain(store: Store, store_url: str | None, path: Path) -> None:
    with closing(open_database(path, store_url)) as other, ThreadPoolExecutor(4) as pool:
        nodes = [store, Store(other)]
        list(pool.map(lambda number: record(nodes[number % 2], f"k{number}"), range(40)))
        count, fault = nodes[1].audit.verify()
    assert (count, fault) == (40, None)
    assert {entry.subject for entry in store.audit.entries()} == {f"k{number}" for number in range(40)}


@pytest.mark.parametrize(
    ("sql", "sequence", "kind"),
    [
        ("UPDATE audit_log SET subject = 'other' WHERE sequence = 3", 3, "changed"),
        ("DELETE FROM audit_log WHERE sequence IN (2, 3)", 2, "removed"),
        ("DELETE FROM audit_log WHERE sequence = 5", 5, "cut"),
        ("DELETE FROM audit_log", 1, "cut"),
        ("UPDATE audit_head SET seal = 'ab'", 5, "unsealed"),
        (
            "INSERT INTO audit_log SELECT 6, at, actor, action, 'k9', before, after, request_id, policy_version, "
            "list_version, hash, 'ff' FROM audit_log WHERE sequence = 5",
            6,
            "changed",
        ),
    ],
)
def test_who_may_do_anything_to_the_store_is_found_out(
    store: Store, store_url: str | None, path: Path, sql: str, sequence: int, kind: str
) -> None:
    store.audit.seal_with(b"pepper")
    for number in range(5):
        record(store, f"k{number}")
    assert store.audit.verify() == (5, None)
    tamper(sql, store_url, path)
    _, fault = store.audit.verify()
    assert fault is not None
    assert (fault.sequence, fault.kind) == (sequence, kind)


def test_a_log_is_read_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_gateway.storage.audit.PAGE", 3)
    for number in range(9):
        record(store, f"k{number}")
    assert [entry.sequence for entry in store.audit.entries()] == list(range(1, 10))
    assert [entry.sequence for entry in store.audit.entries(after=4, until=8)] == [5, 6, 7, 8]
    assert store.audit.verify({4: next(store.audit.entries(after=3)).hash}) == (9, None)
