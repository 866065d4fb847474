"""Migrations, transactions and the tables, on SQLite and PostgreSQL."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepseek_gateway.auth.records import ADMIN, INFERENCE, KeyRecord
from deepseek_gateway.errors import StoreConflictError, StoreError, StoreUnavailableError
from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.rules import Limits, Scope
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.storage.database import Database
from deepseek_gateway.storage.keys import KeyFilter
from deepseek_gateway.storage.migrate import all_migrations, pending_migrations
from deepseek_gateway.storage.store import Store, migrate_store, open_database, open_store
from deepseek_gateway.testing.postgres import PostgresServer
from deepseek_gateway.usage.question import Dimension, Question


@pytest.fixture(params=["sqlite", "postgresql"])
def unmigrated(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str | None]:
    if request.param == "sqlite":
        return tmp_path / "s", None
    server: PostgresServer = request.getfixturevalue("postgres")
    return tmp_path / "s", server.new_database(migrated=False)


def test_each_migration_has_a_number_of_its_own() -> None:
    numbers = [migration.number for migration in all_migrations("sqlite")]
    assert numbers == sorted(set(numbers))
    assert numbers == [migration.number for migration in all_migrations("postgresql")]


def test_migrating_twice_applies_once(unmigrated: tuple[Path, str | None]) -> None:
    every = [each.name for each in all_migrations("sqlite")]
    assert [each.name for each in migrate_store(*unmigrated)] == every
    assert migrate_store(*unmigrated) == []


def test_the_sqlite_file_is_the_owners_alone(tmp_path: Path) -> None:
    migrate_store(tmp_path / "s", None)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_processes_that_migrate_at_once_do_it_once(unmigrated: tuple[Path, str | None]) -> None:
    barrier = threading.Barrier(4)

    def work() -> int:
        barrier.wait()
        return len(migrate_store(*unmigrated))

    with ThreadPoolExecutor(4) as executor:
        applied = [executor.submit(work) for _ in range(4)]
        assert sorted(each.result() for each in applied) == [0, 0, 0, len(all_migrations("sqlite"))]


def test_a_store_that_is_missing_or_old_names_the_command(unmigrated: tuple[Path, str | None]) -> None:
    path, url = unmigrated
    if url is None:
        with pytest.raises(StoreError, match=r"no store at .*deepseek-gateway migrate"):
            open_store(path, url)
        sqlite3.connect(path).close()
    with pytest.raises(StoreError, match=r"lacks 0001_keys_and_ledger.*: run `deepseek-gateway migrate`"):
        open_store(path, url)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE schema_migrations SET checksum = 'x'", "changed after it was applied"),
        ("INSERT INTO schema_migrations VALUES (999, '0999_future', 'x', 0)", "install a newer one"),
    ],
)
def test_a_store_of_another_version_is_refused(database: Database, sql: str, message: str) -> None:
    database.write(sql)
    with pytest.raises(StoreError, match=message):
        pending_migrations(database)
    with pytest.raises(StoreError, match=message):
        Store(database)


def test_a_url_of_another_kind_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="GATEWAY_STORE_URL is no postgresql:// URL") as caught:
        open_database(tmp_path / "s", "mysql://root:geheim@db/x")
    assert "geheim" not in str(caught.value)


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    insert = "INSERT INTO meta (name, value) VALUES (:name, 'x')"

    def fail(fault: Exception | None, *names: str) -> None:
        with database.transaction() as transaction:
            for name in names:
                assert transaction.write(insert, {"name": name}) == 1
            if fault is not None:
                raise fault

    with pytest.raises(StoreConflictError):
        fail(None, "a", "a")
    with pytest.raises(RuntimeError, match="ours"):
        fail(RuntimeError("ours"), "b")
    assert database.read("SELECT name FROM meta WHERE name IN ('a', 'b')") == []
    assert database.write(insert, {"name": "a"}) == 1


def test_a_lock_is_held_by_one_transaction_at_a_time(database: Database) -> None:
    database.write("INSERT INTO meta (name, value) VALUES ('n', '0')")

    def add() -> None:
        for _ in range(10):
            with database.transaction() as transaction:
                transaction.lock("n")
                value = int(transaction.read("SELECT value FROM meta WHERE name = 'n'")[0][0])
                transaction.write("UPDATE meta SET value = :value WHERE name = 'n'", {"value": str(value + 1)})

    with ThreadPoolExecutor(4) as executor:
        for done in [executor.submit(add) for _ in range(4)]:
            done.result()
    assert database.read("SELECT value FROM meta WHERE name = 'n'") == [("40",)]


def test_text_comes_back_as_it_went_in(store: Store) -> None:
    text = "percent %s :name 'quoted' \u4f60\u597d \U0001f600 \\ %%"
    store.meta.set_once("odd", text)
    store.meta.set_once("odd", "later")
    assert store.meta.get("odd") == text
    assert store.meta.get("none") is None


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres: PostgresServer, tmp_path: Path, encoding: str
) -> None:
    url = postgres.new_database(migrated=False, encoding=encoding)
    with pytest.raises(StoreError, match=f"encoded in {encoding}: make one with .*'UTF8'"):
        migrate_store(tmp_path, url)
    postgres.drop_database(url)


def test_texts_come_back_whatever_encoding_the_environment_asks_for(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    database = open_database(tmp_path / "s", postgres.new_database())
    assert database.read("SELECT :text", {"text": "深度"}) == [("深度",)]
    database.close()


def test_a_server_that_restarts_is_used_again(postgres: PostgresServer, tmp_path: Path) -> None:
    database = open_database(tmp_path / "s", postgres.new_database())
    assert database.read("SELECT 1") == [(1,)]
    postgres.kill()
    with pytest.raises(StoreUnavailableError):
        database.read("SELECT 1")
    postgres.start()
    assert database.read("SELECT 1") == [(1,)]
    database.close()


def test_a_key_comes_back_as_it_was_kept(store: Store) -> None:
    store.people.insert(Owner(OwnerKind.ORG, "org-1", "acme", 1.0))
    store.people.insert(Owner(OwnerKind.TEAM, "team-1", "a", 1.0, None, "org-1"))
    store.people.insert(Owner(OwnerKind.USER, "user-1", "a", 1.0, None, "org-1", "team-1"))
    full = KeyRecord(
        "id1", "hash", "na\u00efve 'name'", ADMIN, 5.0, ("a", "b"), Limits(1, 2, 3, 4), 9.0, None, "old", 7.0,
        "org-1", "team-1", "user-1", ("10.0.0.0/8",), ("b", "a"), 8.0, 8.5, "key:x",
    )  # fmt: skip
    bare = KeyRecord("id2", "hash", "", INFERENCE, 6.0)
    store.keys.insert(full, bare)
    assert store.keys.page(KeyFilter(), 0.0, None, 10) == [full, bare]
    assert store.keys.find("id1") == full
    assert store.keys.find("' OR 1=1 --") is None
    assert store.keys.revoke("id1", 10.0).revoked == 10.0
    assert store.keys.revoke("id1", 11.0).revoked == 10.0
    assert store.keys.rotate("id1", "new", 12.0) is None
    rotated = store.keys.rotate("id2", "new", 12.0)
    assert (rotated.secret_hash, rotated.previous_hash, rotated.previous_until) == ("new", "hash", 12.0)


def test_usage_is_summed_by_key_and_day(store: Store) -> None:
    store.keys.insert(KeyRecord("k1", "hash", "first", INFERENCE, 5.0))
    big = 2**31
    store.ledger.insert(
        [
            row("r1", "k1", 86399.9, 10),
            row("r2", "k1", 86400.0, 20),
            row("r3", "k1", 2 * 86400.0 - 0.4, big),
            row("r4", "k2", 86400.5, 1),
        ]
    )
    by = (Dimension.DAY, Dimension.KEY)
    lines = store.usage.answer(Question(by=by))
    assert [(line.labels, line.requests, line.total_tokens) for line in lines] == [
        (("1970-01-01", "k1"), 1, 11),
        (("1970-01-02", "k1"), 2, 22 + big),
        (("1970-01-02", "k2"), 1, 2),
    ]
    assert store.usage.names_in(by, lines) == {"k1": "first"}
    within = store.usage.answer(Question(by=by, since=86400.0, until=86400.9))
    assert [line.labels[1] for line in within] == ["k1", "k2"]
    assert store.usage.answer(Question(by=by, until=5.0, only=((Dimension.KEY, "k1"),))) == []
    assert store.ledger.spent(Scope(key_id="k1"), "tokens", 86400.0, 1e9) == 22 + big
    assert store.ledger.spent(Scope(), "tokens", 86399.0, 86400.0) == 11


def row(name: str, key_id: str, created: float, tokens: int) -> LedgerRow:
    return LedgerRow(
        request_id=name, attempt=1, key_id=key_id, route="/v1/generate", model="m", upstream="u", stream=True,
        status="finished", end_reason="stop", http_status=200, prompt_tokens=tokens, completion_tokens=1,
        cached_tokens=0, accuracy="exact", latency_ms=1.5, ttft_ms=None, created=created,
    )  # fmt: skip


def write_and_fail(database: Database) -> None:
    with database.transaction() as failing:
        failing.write("INSERT INTO meta (name, value) VALUES ('lost', 'x')")
        failing.write("INSERT INTO meta (name, value) VALUES ('inner', 'twice')")


def test_a_transaction_within_a_transaction_is_a_part_of_it(store: Store) -> None:
    database = store.database
    with database.transaction() as transaction:
        store.meta.set_once("inner", "x")
        assert store.meta.get("inner") == "x"
        with pytest.raises(StoreConflictError):
            write_and_fail(database)
        with pytest.raises(StoreConflictError):
            database.write("INSERT INTO meta (name, value) VALUES ('inner', 'twice')")
        transaction.write("INSERT INTO meta (name, value) VALUES ('outer', 'x')")
    assert [store.meta.get(name) for name in ("inner", "outer", "lost")] == ["x", "x", None]


def test_what_was_done_within_goes_with_the_outer_transaction(store: Store) -> None:
    def do_and_fail() -> None:
        with store.database.transaction():
            store.meta.set_once("inner", "x")
            raise LookupError

    with pytest.raises(LookupError):
        do_and_fail()
    assert store.meta.get("inner") is None
    with ThreadPoolExecutor(1) as other, store.database.transaction():
        store.meta.set_once("inner", "y")
        assert other.submit(store.meta.get, "inner").result() is None
    assert store.meta.get("inner") == "y"


def test_parameters_may_stand_anywhere_and_twice(database: Database) -> None:
    insert = "INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = :value"
    values = {"value": "it's :name", "name": "a", "unused": 1}
    assert database.write(insert, values) == database.write(insert, values) == 1
    with database.transaction() as transaction:
        transaction.write_many(insert, [{"name": name, "value": "x"} for name in ("b", "c")])
        assert transaction.read("SELECT name FROM meta WHERE value = :v OR name = :v ORDER BY name", {"v": "x"}) == [
            ("b",),
            ("c",),
        ]
    assert database.read("SELECT value FROM meta WHERE name = :name", {"name": "a"}) == [("it's :name",)]
