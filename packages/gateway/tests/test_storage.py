"""Migrations and the key table."""

import sqlite3
import threading
from pathlib import Path

import pytest

from deepseek_gateway.auth.records import KeyRecord, Scope
from deepseek_gateway.errors import StoreError
from deepseek_gateway.limits.rules import Limits
from deepseek_gateway.storage.migrate import all_migrations
from deepseek_gateway.storage.sqlite import SqliteStore, migrate_sqlite


def test_migrations_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in all_migrations()] == list(range(1, len(all_migrations()) + 1))


def test_migrating_twice_applies_once(tmp_path: Path) -> None:
    assert [each.name for each in migrate_sqlite(tmp_path / "s")] == [each.name for each in all_migrations()]
    assert migrate_sqlite(tmp_path / "s") == []
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_two_processes_that_migrate_at_once_do_it_once(tmp_path: Path) -> None:
    applied: list[int] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        applied.append(len(migrate_sqlite(tmp_path / "s")))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [0, 0, 0, len(all_migrations())]


def test_a_store_that_is_missing_or_old_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="deepseek-gateway migrate"):
        SqliteStore(tmp_path / "s")
    sqlite3.connect(tmp_path / "s").close()
    with pytest.raises(StoreError, match="lacks 0001_keys_and_ledger: run `deepseek-gateway migrate`"):
        SqliteStore(tmp_path / "s")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE schema_migrations SET checksum = 'x'", "changed after it was applied"),
        ("INSERT INTO schema_migrations VALUES (999, '0999_future', 'x', 0)", "install a newer one"),
    ],
)
def test_a_store_of_another_version_is_refused(tmp_path: Path, sql: str, message: str) -> None:
    migrate_sqlite(tmp_path / "s")
    connection = sqlite3.connect(tmp_path / "s")
    connection.execute(sql)
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=message):
        SqliteStore(tmp_path / "s")
    with pytest.raises(StoreError, match=message):
        migrate_sqlite(tmp_path / "s")


def test_a_key_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    migrate_sqlite(tmp_path / "s")
    store = SqliteStore(tmp_path / "s")
    full = KeyRecord(
        "id1", "hash", "naïve 'name'", Scope.ADMIN, 5.0, ("a", "b"), Limits(1, 2, 3, 4), 9.0, None, "old", 7.0
    )
    bare = KeyRecord("id2", "hash", "", Scope.INFERENCE, 6.0)
    for record in (full, bare):
        store.insert_key(record)
    assert store.list_keys() == [full, bare]
    assert store.find_key("id1") == full
    assert store.find_key("' OR 1=1 --") is None
    assert store.revoke_key("id1", 10.0).revoked == 10.0
    assert store.revoke_key("id1", 11.0).revoked == 10.0
    assert store.rotate_key("id1", "new", 12.0) is None
    rotated = store.rotate_key("id2", "new", 12.0)
    assert (rotated.secret_hash, rotated.previous_hash, rotated.previous_until) == ("new", "hash", 12.0)
    store.close()
