"""Rows and lives of a key and of its owners are found with one index by key: exactly those that are theirs."""

from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from deepseek_gateway.audit.life import Refusal, life_of, refused_life
from deepseek_gateway.ledger.records import LedgerRow, Settled
from deepseek_gateway.limits.rules import Scope
from deepseek_gateway.storage import newest
from deepseek_gateway.storage.database import Database
from deepseek_gateway.storage.migrate import all_migrations, migrate
from deepseek_gateway.storage.rollups import HourMarks
from deepseek_gateway.storage.store import Store, open_database
from deepseek_gateway.testing.postgres import PostgresServer
from deepseek_gateway.usage.zones import HOUR_S

START = 480_000 * HOUR_S
OLD_COLUMNS = [field.name for field in fields(LedgerRow)]


def row(number: int, created: float, **more: Any) -> LedgerRow:
    base = LedgerRow(
        request_id=f"r{number}", attempt=1, key_id="k0", route="/v1/generate", model="m", upstream="u", stream=True,
        status="finished", end_reason="stop", http_status=200, prompt_tokens=number, completion_tokens=1,
        cached_tokens=0, accuracy="exact", latency_ms=1.5, ttft_ms=None, created=created, cost_nano=number * 3,
    )  # fmt: skip
    return replace(base, **more)


def rows_of(rng: Random, count: int) -> list[LedgerRow]:
    """Rows of ten hours; keys move between teams and users."""
    made: list[LedgerRow] = []
    for number in range(count):
        key = rng.randrange(6)
        owners = {
            "key_id": f"k{key}",
            "org_id": (None, "a", "b")[key % 3],
            "team_id": rng.choice((None, "a", "red")),
            "user_id": rng.choice((None, "ann", "bob")),
            "model": rng.choice((None, "m-1", "m-2", "n")),
        }
        made.append(row(number, START + rng.random() * 10 * HOUR_S, **owners))
    return made


def used_of(rows: list[LedgerRow], scope: Scope, start: float, end: float) -> int:
    """What a budget adds up to, the plain way."""
    given = {name: value for name, value in asdict(scope).items() if value is not None and name != "model"}
    total = 0
    for each in rows:
        is_model = scope.model is None or (
            each.model is not None and each.model.startswith(scope.model[:-1])
            if scope.model.endswith("*")
            else each.model == scope.model
        )
        if start <= each.created < end and is_model and all(getattr(each, name) == given[name] for name in given):
            total += each.prompt_tokens + each.completion_tokens
    return total


SCOPES = (
    Scope(), Scope(key_id="k1"), Scope(org_id="a"), Scope(team_id="a"), Scope(user_id="ann"),
    Scope(org_id="b", team_id="red"), Scope(key_id="k4", user_id="bob"), Scope(model="m-*"), Scope(model="*"),
    Scope(org_id="a", model="m-2"), Scope(user_id="bob", model="n"), Scope(org_id="nobody"),
)  # fmt: skip


def test_a_budget_is_the_same_from_sums_and_from_rows(store: Store) -> None:
    rng = Random(3)
    rows = rows_of(rng, 300)
    windows = [(0.0, 1e12), (START, START + 10 * HOUR_S), (START + 1800, START + 7 * HOUR_S + 900.5)]
    windows += [(START + 3 * HOUR_S, START + 4 * HOUR_S), (START + 100, START + 200), (START + 3500, START + 3700)]

    def check(kept: list[LedgerRow]) -> None:
        for scope in SCOPES:
            for start, end in windows:
                assert store.ledger.spent(scope, "tokens", start, end) == used_of(kept, scope, start, end)

    store.ledger.insert(rows[:250])
    check(rows[:250])
    for hour in store.rollups.due(START // HOUR_S + 8):
        assert store.rollups.roll(hour)
    check(rows[:250])
    store.ledger.insert(rows[250:])  # some come late, to hours whose sums are made
    check(rows)
    assert store.ledger.spent(Scope(org_id="a"), "money", 0, 1e12) == sum(
        each.cost_nano for each in rows if each.org_id == "a"
    )


def test_a_budget_is_the_same_when_old_rows_are_deleted(store: Store) -> None:
    rows = rows_of(Random(4), 200)
    store.ledger.insert(rows)
    for hour in store.rollups.due(START // HOUR_S + 10):
        assert store.rollups.roll(hour)
    deleted = [store.rollups.prune(START // HOUR_S + hour) for hour in range(5)]
    assert sum(number or 0 for number in deleted) > 50
    late = row(999, START + 5.0, key_id="k1", org_id="a")
    store.ledger.insert([late])
    for scope in SCOPES:
        assert store.ledger.spent(scope, "tokens", START, 1e12) == used_of([*rows, late], scope, START, 1e12)


def refusal(number: int, created: float, key_id: str, org_id: str | None) -> Refusal:
    return Refusal(f"x{number}", None, key_id, org_id, "/v1/generate", None, 403, None, "no", created, "", "")


@pytest.mark.parametrize("num_merged", [newest.MAX_MERGED, 1])
def test_lives_of_a_key_and_of_an_organisation_are_listed_in_pages(
    store: Store, monkeypatch: pytest.MonkeyPatch, num_merged: int
) -> None:
    monkeypatch.setattr(newest, "MAX_MERGED", num_merged)
    rng = Random(5)
    rows = [replace(each, status=rng.choice(("finished", "failed"))) for each in rows_of(rng, 120)]
    refused = [refusal(at, START + rng.random() * 10 * HOUR_S, "k1", "a") for at in range(20)]
    for at in range(0, 120, 40):
        store.books.keep([Settled(each) for each in rows[at : at + 40]], refused[at // 6 : at // 6 + 7])
    _check_lists(store, rows, refused)
    assert store.lives.first_fault(store.audit.entries()) == (140, None)
    for hour in store.rollups.due(START // HOUR_S + 10):
        assert store.rollups.roll(hour)
    for hour in range(6):
        store.rollups.prune(START // HOUR_S + hour)
    _check_lists(store, rows, refused)  # lives stay longer than rows


def _check_lists(store: Store, rows: list[LedgerRow], refused: list[Refusal]) -> None:
    every = [(each.created, each.request_id, each.key_id, each.org_id) for each in (*rows, *refused)]
    for key_id, org_id in [(None, None), ("k1", None), (None, "a"), ("k1", "a"), ("k1", "b"), ("k9", None)]:
        wanted = [
            (created, name)
            for created, name, key, org in sorted(every, reverse=True)
            if key_id in (None, key) and org_id in (None, org)
        ]
        found: list[tuple[float, str]] = []
        while lives := store.lives.listing(key_id, org_id, found[-1][0] if found else None, 7):
            found += [(life.created, life.request_id) for life in lives]
        assert found == wanted
        failed = {each.request_id for each in rows if each.status == "failed"}
        told = store.lives.listing(key_id, org_id, START + 8 * HOUR_S, 9, outcome="failed")
        is_failed = [name for created, name in wanted if name in failed and created < START + 8 * HOUR_S]
        assert [life.request_id for life in told] == is_failed[:9]
        told = store.lives.listing(key_id, org_id, None, 9, outcome="refused")
        assert [life.request_id for life in told] == [name for _, name in wanted if name.startswith("x")][:9]


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database as version 7 of the schema left it."""
    url = None
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.new_database(migrated=False)
    database = open_database(tmp_path / "old.sqlite3", url)
    with pytest.MonkeyPatch.context() as patch:
        every = all_migrations(database.kind)
        patch.setattr("deepseek_gateway.storage.migrate.all_migrations", lambda _kind: every[:7])
        assert len(migrate(database)) == 7
    yield database
    database.close()


def test_what_an_older_version_kept_is_found_after_the_migration(old: Database) -> None:
    rows = rows_of(Random(6), 60)
    names = ", ".join(OLD_COLUMNS)
    marks = ", ".join(f":{name}" for name in OLD_COLUMNS)
    life = """INSERT INTO request_lives
        (request_id, client_request_id, key_id, org_id, created, life, hash, batch, position)
        VALUES (:request_id, :client, :key_id, :org_id, :created, :life, '', 1, :attempt)"""
    with old.transaction() as transaction:
        for each in rows:
            values = {**each.to_dict(), "stream": 1, "client": each.request_id if each.team_id else None}
            values["life"] = life_of(Settled(each)).life
            transaction.write(f"INSERT INTO ledger ({names}) VALUES ({marks})", values)
            transaction.write(life, values)
        HourMarks().set(transaction, (each.created for each in rows))
        refused = refusal(1, START, "k1", "a")
        values = {**asdict(refused), "client": None, "attempt": 1, "life": refused_life(refused).life}
        transaction.write(life, values)
    migrate(old)
    store = Store(old)
    for scope in SCOPES:
        assert store.ledger.spent(scope, "tokens", START, 1e12) == used_of(rows, scope, START, 1e12)
    _check_lists(store, rows, [refused])
    named = next(each for each in rows if each.team_id)
    assert [life.request_id for life in store.lives.find_by_client(named.request_id, 5)] == [named.request_id]
