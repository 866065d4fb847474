"""Keys in the store: read by an index whatever their number, in pages, and marked as used in batches."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_gateway.auth.directory import MAX_STALE_S, KeyDirectory
from deepseek_gateway.auth.drafts import KeyDraft, LimitsDraft
from deepseek_gateway.auth.last_used import LastUsed
from deepseek_gateway.auth.records import INFERENCE, KeyRecord, parse_scopes
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.errors import ApiError, StoreUnavailableError
from deepseek_gateway.limits.rules import Limits
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.storage.database import Database
from deepseek_gateway.storage.keys import KEY_STATES, KeyFilter, KeyTable
from deepseek_gateway.storage.paging import Cursor
from deepseek_gateway.storage.store import Store
from deepseek_gateway.testing.stack import OPERATOR

PEPPER = b"pepper of sixteen bytes"


def record(number: int, **fields) -> KeyRecord:
    return KeyRecord(f"key{number:09}", "hash", f"key {number}", INFERENCE, created=float(number // 3), **fields)


def plan_of(database: Database, sql: str, **values: object) -> str:
    explain = "EXPLAIN QUERY PLAN" if database.kind == "sqlite" else "EXPLAIN"
    return "\n".join(str(row[-1]) for row in database.read(f"{explain} {sql}", values))


def test_look_ups_and_pages_use_an_index(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.people.insert(Owner(OwnerKind.ORG, "org-1", "acme", 1.0))
    owned = [record(number, org_id="org-1" if number % 100 == 0 else None, tags=("t",)) for number in range(2000)]
    store.keys.insert(*owned)
    store.database.write("ANALYZE")
    statements: list[tuple[str, dict[str, object]]] = []
    ways: list[str] = []

    def noting(name):
        call = getattr(type(store.database), name)

        def noted(database, sql, values=None, *more, **named):
            statements.append((sql, dict(values or {})))
            ways.append(name)
            return call(database, sql, values or {}, *more, **named)

        return noted

    for name in ("read", "report"):
        monkeypatch.setattr(type(store.database), name, noting(name))
    store.keys.find("key000000007")
    after = Cursor(100.0, "key000000301")
    store.keys.page(KeyFilter(), 0.0, after, 10)
    store.keys.page(KeyFilter(org_id="org-1"), 0.0, after, 10)
    store.keys.page(KeyFilter(tag="t"), 0.0, after, 10)
    monkeypatch.undo()
    assert ways == ["read", "report", "report", "report"]  # no look-up waits for a list that looks at many
    indices = (("api_keys_pkey", "api_keys_1"), ("by_created",), ("by_org", "by_created"), ("key_tags",))
    for (sql, values), names in zip(statements, indices, strict=True):
        plan = plan_of(store.database, sql, **values)
        assert any(name in plan for name in names), plan
        assert "SCAN api_keys" not in plan.replace("SCAN api_keys USING INDEX", ""), plan
        assert "Seq Scan on api_keys" not in plan, plan
        assert "TEMP B-TREE" not in plan, plan


def test_pages_hold_every_key_once_in_order(store: Store) -> None:
    store.keys.insert(*(record(number, tags=("even",) if number % 2 == 0 else ()) for number in range(100)))
    for wanted, number in ((KeyFilter(), 100), (KeyFilter(tag="even"), 50)):
        found: list[KeyRecord] = []
        after = None
        while page := store.keys.page(wanted, 0.0, after, 7):
            found += page
            after = Cursor(page[-1].created, page[-1].public_id)
        assert len(found) == number
        assert found == sorted(found, key=lambda key: (key.created, key.public_id))


def test_a_filter_by_state_agrees_with_the_record(store: Store) -> None:
    now = 1000.0
    times = (None, now - 1, now, now + 1)
    kinds = [(expires, off, revoked) for expires in times for off in (None, 5.0) for revoked in (None, 6.0)]
    keys = [record(n, expires=e, disabled=d, revoked=r) for n, (e, d, r) in enumerate(kinds)]
    store.keys.insert(*keys)
    by_state = {state: store.keys.page(KeyFilter(state=state), now, None, 100) for state in KEY_STATES}
    for state, found in by_state.items():
        assert found == [key for key in keys if key.state(now) == state], state
    assert sum(map(len, by_state.values())) == len(keys)


async def test_last_use_is_written_in_batches_and_never_goes_back(store: Store) -> None:
    store.keys.insert(*(record(number) for number in range(3)))
    now = [100.0]
    with ThreadPoolExecutor(1) as executor:
        used = LastUsed(store.keys, executor, lambda: now[0])
        for _ in range(1000):
            used.seen("key000000000")
        now[0] = 150.0
        used.seen("key000000001")
        await used.flush()
        now[0] = 120.0
        used.seen("key000000001")
        await used.flush()
    shown = [key.last_used for key in store.keys.page(KeyFilter(), 0.0, None, 10)]
    assert shown == [100.0, 150.0, None]


async def test_last_use_waits_while_the_store_is_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.keys.insert(record(1))

    def away(*_: object) -> None:
        raise StoreUnavailableError("away")

    with ThreadPoolExecutor(1) as executor:
        used = LastUsed(store.keys, executor, lambda: 7.0)
        used.seen("key000000001")
        with monkeypatch.context() as patch:
            patch.setattr(KeyTable, "mark_used", away)
            await used.flush()
        await used.flush()
    assert store.keys.find("key000000001").last_used == 7.0


async def test_a_key_in_use_is_read_again_before_its_entry_ends_and_nobody_waits(store: Store) -> None:
    now = [0.0]
    with ThreadPoolExecutor(1) as executor:
        directory = KeyDirectory(store, PEPPER, 2.0, executor, lambda: now[0])
        issued = KeyService(store, PEPPER).create(OPERATOR, KeyDraft(name="a"))
        header = f"Bearer {issued.text}"
        await directory.authenticate(header)
        KeyService(store, PEPPER).set_disabled(OPERATOR, issued.record.public_id, disabled=True)
        now[0] = 1.5
        await directory.authenticate(header)  # the old entry serves, and a new one is on its way
        await asyncio.gather(*directory._loading.values())
        with pytest.raises(ApiError, match="is disabled"):
            await directory.authenticate(header)


async def test_while_the_store_is_away_keys_work_on_for_five_seconds_and_no_longer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailableError("away")

    now = [0.0]
    with ThreadPoolExecutor(1) as executor:
        directory = KeyDirectory(store, PEPPER, 2.0, executor, lambda: now[0])
        issued = KeyService(store, PEPPER).create(OPERATOR, KeyDraft(name="a"))
        header = f"Bearer {issued.text}"
        await directory.authenticate(header)
        monkeypatch.setattr(KeyTable, "find", away)
        now[0] = MAX_STALE_S - 0.01
        assert (await directory.authenticate(header)).public_id == issued.record.public_id
        now[0] = MAX_STALE_S
        with pytest.raises(ApiError) as refused:
            await directory.authenticate(header)
        assert refused.value.status == 503


async def test_a_slow_store_is_waited_for_when_what_it_said_last_is_too_old(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, answers, find = [0.0], threading.Event(), KeyTable.find

    def slow(table: KeyTable, public_id: str) -> KeyRecord | None:
        answers.wait(30)
        return find(table, public_id)

    with ThreadPoolExecutor(1) as executor:
        directory = KeyDirectory(store, PEPPER, 2.0, executor, lambda: now[0])
        issued = KeyService(store, PEPPER).create(OPERATOR, KeyDraft(name="a"))
        await directory.authenticate(f"Bearer {issued.text}")
        monkeypatch.setattr(KeyTable, "find", slow)
        now[0] = MAX_STALE_S - 0.01
        asking = asyncio.create_task(directory.authenticate(f"Bearer {issued.text}"))
        await asyncio.sleep(0)
        now[0] = MAX_STALE_S + 1
        await asyncio.wait({asking}, timeout=0.1)
        answers.set()
        assert (await asking).public_id == issued.record.public_id


def test_the_old_admin_scope_means_both_of_its_kinds() -> None:
    assert parse_scopes(["admin"]) == parse_scopes(["admin-read", "admin-write"])
    for wrong in ([], ["god"], ["ADMIN"]):
        with pytest.raises(ValueError, match="scope"):
            parse_scopes(wrong)


def test_a_draft_has_every_limit() -> None:
    assert LimitsDraft().to_limits() == Limits()
    assert set(LimitsDraft.model_fields) == set(Limits().to_json())


@pytest.mark.parametrize(
    ("patterns", "model", "allowed"),
    [
        (None, None, True),
        (None, "a", True),
        ((), "a", False),
        ((), None, False),
        (("a",), "a", True),
        (("a",), "ab", False),
        (("a*",), "a", True),
        (("a*",), "ab", True),
        (("a*",), "ba", False),
        (("*",), "anything", True),
        (("*",), None, False),
        (("x", "a*"), "ab", True),
        (("A",), "a", False),
    ],
)
def test_models_are_allowed_by_name_or_beginning(
    patterns: tuple[str, ...] | None, model: str | None, allowed: bool
) -> None:
    assert replace(record(1), models=patterns).allows_model(model) is allowed


@given(st.floats(0, 4e9), st.from_regex(r"[0-9A-Za-z-]{1,30}", fullmatch=True))
def test_a_cursor_comes_back_from_its_text(created: float, found_id: str) -> None:
    assert Cursor.parse(str(Cursor(created, found_id))) == Cursor(created, found_id)


@settings(max_examples=200)
@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_=-]{0,60}", fullmatch=True))
def test_a_text_that_is_no_cursor_is_a_422(text: str) -> None:
    refused = None
    try:
        Cursor.parse(text)
    except ApiError as error:
        refused = error
    assert refused is None or (refused.status, refused.param) == (422, "cursor")


def test_thousands_of_keys_are_made_in_batches(store: Store) -> None:
    began = time.time()
    issued = KeyService(store, PEPPER).create_many(OPERATOR, KeyDraft(name="many", tags=["bulk"]), 1200)
    keys = list(issued)
    assert len({key.record.public_id for key in keys}) == 1200
    assert [keys[at].record.name for at in (0, 1199)] == ["many-1", "many-1200"]
    page = store.keys.page(KeyFilter(tag="bulk"), began, None, 2000)
    assert {key.public_id for key in page} == {key.record.public_id for key in keys}
