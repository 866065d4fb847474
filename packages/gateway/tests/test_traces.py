"""Every request's life is kept, and the audit log vouches for it."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deepseek_gateway.audit.trail import plain_id
from deepseek_gateway.ledger.records import LedgerRow, Settled
from deepseek_gateway.storage.store import Store
from deepseek_gateway.testing.caller import Caller, until
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import Stack, running_gateway, running_stack
from deepseek_gateway.testing.tampering import tamper


def row(name: str, created: float = 1795392000.0) -> LedgerRow:
    return LedgerRow(
        request_id=name, attempt=1, key_id="key", route="/v1/generate", model="m", upstream="u", stream=True,
        status="finished", end_reason="stop", http_status=200, prompt_tokens=5, completion_tokens=1,
        cached_tokens=0, accuracy="exact", latency_ms=1.5, ttft_ms=None, created=created,
    )  # fmt: skip


async def life_of(store: Store, request_id: str) -> dict[str, Any]:
    while (life := await asyncio.to_thread(store.lives.find, request_id)) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return life.to_json()


async def test_a_finished_request_is_followed_from_its_id(stack: Stack) -> None:
    reply = await stack.caller.post(headers={"x-request-id": "my-app/7"})
    request_id = reply.headers["x-request-id"]
    assert request_id.startswith("req-")
    life = await life_of(stack.gateway.store, request_id)
    assert (life["client_request_id"], life["key_id"]) == ("my-app/7", stack.caller.key_id)
    assert (life["ledger"]["end_reason"], life["ledger"]["prompt_tokens"]) == ("stop", 3)
    (attempt,) = life["attempts"]
    assert (attempt["number"], attempt["status"], attempt["fault"]) == (1, 200, None)
    assert attempt["id"] == stack.engine.headers[0]["x-request-id"]
    found = stack.gateway.store.lives.find_by_client("my-app/7", 5)
    assert [each.request_id for each in found] == [request_id]


async def test_attempts_that_failed_before_the_one_that_answered_are_kept(state_dir: Path) -> None:
    async with (
        serving(FakeEngine()) as gone,
        serving(FakeEngine()) as served,
        running_gateway(state_dir, gone.url, served.url, upstream_probe_s=60) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        gone.kill()
        attempts: list[dict[str, Any]] = []
        for number in range(40):  # each prompt has an engine of its own that it goes to first
            reply = await caller.post(body={"prompt": f"{number} a", "stream": True})
            assert reply.status == 200
            attempts = (await life_of(running.gateway.store, reply.headers["x-request-id"]))["attempts"]
            if len(attempts) > 1:
                break
    assert [attempt["upstream"] for attempt in attempts] == [gone.url, served.url]
    assert attempts[0]["fault"] is not None
    assert (attempts[1]["fault"], attempts[1]["status"]) == (None, 200)
    assert attempts[0]["id"] != attempts[1]["id"]
    assert attempts[1]["began_ms"] >= attempts[0]["began_ms"]


async def test_a_refused_request_of_a_known_key_is_kept_and_one_of_an_unknown_key_is_not(stack: Stack) -> None:
    refused = await stack.with_key(models=("other",)).post(body={"prompt": "a", "model": "mine"})
    unknown = await stack.caller.with_key("dsk_nothing").post()
    assert (refused.status, unknown.status) == (403, 401)
    life = await life_of(stack.gateway.store, refused.headers["x-request-id"])
    assert life["ledger"] is None
    assert (life["refusal"]["status"], life["refusal"]["code"]) == (403, "model_not_allowed")
    assert await asyncio.to_thread(stack.gateway.store.lives.find, unknown.headers["x-request-id"]) is None


async def test_a_flood_of_refusals_is_kept_only_in_part(stack: Stack) -> None:
    caller = stack.with_key(models=("other",))
    replies = await asyncio.gather(*(caller.post(body={"prompt": "a", "model": "mine"}) for _ in range(150)))
    assert {reply.status for reply in replies} == {403}
    await stack.gateway.ledger.flush()
    kept = await asyncio.to_thread(stack.gateway.store.lives.listing, caller.key_id, None, None, 1000)
    assert 0 < len(kept) <= 150


async def test_many_requests_are_few_entries_of_the_log(stack: Stack) -> None:
    await asyncio.gather(*(stack.caller.post() for _ in range(40)))
    await until(lambda: stack.gateway.running == 0)
    await stack.running.rows(40)
    store = stack.gateway.store
    count, fault = await asyncio.to_thread(store.audit.verify)
    assert fault is None
    assert count < 40
    assert await asyncio.to_thread(store.lives.first_fault, store.audit.entries()) == (40, None)


@pytest.mark.parametrize("name", ["a" * 129, "", "sp ace", 'quote"', "line\nfeed", "日本"])
def test_a_callers_request_id_that_is_long_or_odd_is_not_kept(name: str) -> None:
    assert plain_id(name) is None
    assert plain_id("01J-abc_9.8:7/6+5=4@3") is not None


@pytest.fixture
def kept(store: Store) -> Store:
    for batch in range(4):
        store.books.keep([Settled(row(f"r{batch}-{number}")) for number in range(3)])
    return store


def test_replayed_requests_stay_in_their_batch(kept: Store) -> None:
    kept.books.keep([Settled(row("r1-0")), Settled(row("new")), Settled(row("r2-0"))])
    kept.books.keep([Settled(row("r1-0"))])
    assert [entry.after for entry in kept.audit.entries()][4].startswith('{"count":1,')
    assert kept.lives.first_fault(kept.audit.entries()) == (13, None)
    assert kept.audit.verify() == (5, None)


@pytest.mark.parametrize(
    ("sql", "batch", "kind"),
    [
        ("UPDATE request_lives SET life = replace(life, '\"prompt_tokens\":5', '\"prompt_tokens\":1') "
         "WHERE request_id = 'r1-1'", 2, "changed"),
        ("UPDATE request_lives SET key_id = 'other' WHERE request_id = 'r2-0'", 3, "changed"),
        ("DELETE FROM request_lives WHERE request_id = 'r3-2'", 4, "removed"),
        ("UPDATE request_lives SET request_id = 'x', batch = 3 WHERE request_id = 'r0-0'", 1, "removed"),
        ("UPDATE request_lives SET batch = 9 WHERE batch = 1", 1, "removed"),
        ("UPDATE request_lives SET position = 9 WHERE request_id = 'r1-0'", 2, "rewritten"),
        ("INSERT INTO request_lives SELECT 'forged', client_request_id, key_id, org_id, created, life, hash, 77, 0, "
         "apart FROM request_lives WHERE request_id = 'r0-0'", 77, "inserted"),
    ],
)  # fmt: skip
def test_a_changed_life_is_found(
    kept: Store, store_url: str | None, tmp_path: Path, sql: str, batch: int, kind: str
) -> None:
    tamper(sql, store_url, tmp_path / "store.sqlite3")
    assert kept.audit.verify() == (4, None)
    _, fault = kept.lives.first_fault(kept.audit.entries())
    assert fault is not None
    assert (fault.sequence, fault.kind) == (batch, kind)


def test_old_lives_are_deleted_by_batches_and_the_log_says_so(kept: Store) -> None:
    kept.books.keep([Settled(row("young", created=1795399999.0))])
    until_s = 1795392001.0
    assert kept.lives.purge(kept.audit, until_s, limit=4) == 6
    assert kept.lives.purge(kept.audit, until_s, limit=4) == 6
    assert kept.lives.purge(kept.audit, until_s, limit=4) == 0
    assert [life.request_id for life in kept.lives.listing(None, None, None, 10)] == ["young"]
    assert kept.lives.first_fault(kept.audit.entries()) == (1, None)
    assert [entry.action for entry in kept.audit.entries()][-2:] == ["requests.purge", "requests.purge"]
    assert kept.audit.verify() == (7, None)


async def test_lives_survive_on_postgresql_as_on_sqlite(state_dir: Path, store_url: str | None) -> None:
    more = {} if store_url is None else {"store_url": store_url}
    async with running_stack(state_dir, **more) as stack:
        reply = await stack.caller.post(body={"prompt": "a", "stream": True})
        life = await life_of(stack.gateway.store, reply.headers["x-request-id"])
    assert life["ledger"]["status"] == "finished"
