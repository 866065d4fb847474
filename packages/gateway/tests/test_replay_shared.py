"""Two gateways with one store and one Redis: a retry at the other one gets the one answer."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deepseek_gateway.audit.retention import DROP, RetentionService
from deepseek_gateway.guard.entries import Entry, Level
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.replay import shared
from deepseek_gateway.replay.book import ReplayBook
from deepseek_gateway.replay.erasures import Erasures
from deepseek_gateway.replay.recording import Head, Recording, Terms
from deepseek_gateway.replay.shared import SharedAnswers
from deepseek_gateway.testing.caller import Caller, next_event, until
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.postgres import PostgresServer
from deepseek_gateway.testing.redis_server import RedisServer
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import OPERATOR, RunningGateway, running_gateway

ONCE = {"idempotency-key": "order-17"}
BODY: dict[str, Any] = {"prompt": "a b c", "fake": {"tokens": 4}}


@contextlib.asynccontextmanager
async def two_gateways(
    folder: Path, postgres: PostgresServer, redis_url: str, **settings: object
) -> AsyncIterator[tuple[FakeEngine, list[RunningGateway], list[Caller]]]:
    engine, store_url = FakeEngine(), postgres.new_database()
    patient = {"redis_url": redis_url, "redis_timeout_s": 5.0}  # a slow machine's Redis is not one that is away
    shared: dict[str, Any] = {"store_url": store_url, "key_pepper": "p" * 40, **patient, **settings}
    async with (
        serving(engine) as served,
        running_gateway(folder / "a", served.url, **shared) as one,
        running_gateway(folder / "b", served.url, **shared) as two,
        aiohttp.ClientSession() as session,
    ):
        key = one.key()
        yield engine, [one, two], [Caller(session, each.url, key) for each in (one, two)]
        await until(lambda: one.gateway.running == two.gateway.running == 0)
    postgres.drop_database(store_url)


@pytest.fixture
async def nodes(tmp_path: Path, postgres: PostgresServer, redis_url: str) -> AsyncIterator[Any]:
    async with two_gateways(tmp_path, postgres, redis_url) as all_of_it:
        yield all_of_it


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_at_another_gateway_gets_the_finished_answer(nodes: Any, stream: bool) -> None:
    engine, gateways, (here, there) = nodes
    body = {**BODY, "stream": stream}
    first = await here.post(body=body, headers=ONCE)
    again = await there.post(body=body, headers=ONCE)
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-replay-of"] == first.headers["x-request-id"]
    assert len(engine.bodies) == 1
    assert len(await gateways[0].rows(1)) == 1
    reused = await there.post(body={**body, "prompt": "other"}, headers={**ONCE})
    assert (reused.status, reused.error["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_at_another_gateway_waits_for_the_running_answer(nodes: Any, stream: bool) -> None:
    engine, _, (here, there) = nodes
    body = {**BODY, "stream": stream, "fake": {"tokens": 4, "gated": True}}
    asking = asyncio.create_task(here.post(body=body, headers=ONCE))
    await engine.until_running()
    retrying = [asyncio.create_task(there.post(body=body, headers=ONCE)) for _ in range(2)]
    engine.allow(4)
    first, *others = await asyncio.gather(asking, *retrying)
    assert {other.body for other in others} == {first.body}
    assert len(engine.bodies) == 1


async def test_a_broken_stream_goes_on_at_another_gateway(nodes: Any) -> None:
    engine, _, (here, there) = nodes
    first = await here.post(body={**BODY, "stream": True}, headers=ONCE)
    request_id = first.headers["x-request-id"]
    rest = await there.post(body=b"", headers={"last-event-id": f"{request_id}:1"})
    assert rest.events == first.events[2:]
    assert (await there.post(body=b"", headers={"last-event-id": "req-unknown:1"})).status == 404
    assert len(engine.bodies) == 1


async def test_a_broken_stream_that_runs_elsewhere_is_waited_for_and_goes_on(nodes: Any) -> None:
    engine, gateways, (here, there) = nodes
    body = {**BODY, "stream": True, "fake": {"tokens": 4, "gated": True}}
    engine.allow(2)
    async with here.open("/v1/generate", body, headers=ONCE) as answer:
        seen = [await next_event(answer) for _ in range(2)]
    mark = seen[-1].partition("\n")[0].removeprefix("id: ")
    resuming = asyncio.create_task(there.post(body=b"", headers={"last-event-id": mark}))
    await until(lambda: gateways[1].gateway.running == 1)
    engine.allow(2)
    rest = await resuming
    assert (rest.status, len(engine.bodies)) == (200, 1)
    numbers = [int(event.partition("\n")[0].rpartition(":")[2]) for event in [*seen, *rest.events]]
    assert numbers == list(range(6))
    assert rest.events[-1].endswith("data: [DONE]")
    assert len(await gateways[0].rows(1)) == 1


async def test_a_caller_that_waits_elsewhere_keeps_an_answer_going(redis_url: str) -> None:
    here, there = [SharedAnswers(redis_url, 5.0, 60.0) for _ in range(2)]
    answer, retry = recording_of("req-1"), recording_of("req-2")
    assert await here.claim("name", answer) is None
    went_on: list[str] = []
    answer.go_on = lambda: went_on.append("renewed")
    assert await here.renew("name", answer)
    assert went_on == []
    known = await there.claim("name", retry)
    assert (known.state, known.request_id) == ("running", "req-1")
    assert await here.renew("name", answer)
    assert went_on == ["renewed"]
    assert (await there.of_request("key", "req-1")).state == "running"
    await here.finish(here.parting("name", answer, is_kept=False))
    assert await there.of_request("key", "req-1") is None
    assert await there.claim("name", retry) is None
    await here.close()
    await there.close()


async def test_a_claim_waits_for_a_slow_server_and_is_made_again_where_it_was_lost(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "STEP_TIMEOUT_S", 30.0)
    monkeypatch.setattr(shared, "REST_S", 0.01)
    here, there = [SharedAnswers(redis_server.url, 0.05, 60.0) for _ in range(2)]
    answer, retry = recording_of("req-1"), recording_of("req-2")
    redis_server.pause()
    claiming = asyncio.create_task(here.claim("name", answer))
    await asyncio.sleep(0.1)  # longer than a step of limits may take
    redis_server.resume()
    assert await claiming is None
    assert (await there.claim("name", retry)).request_id == "req-1"
    redis_server.kill()
    assert not await here.renew("name", answer)
    redis_server.restart()
    async with asyncio.timeout(30):
        while not await here.renew("name", answer):
            pass
        while (known := await there.claim("name", retry)) is None:  # it had failed too, and rests
            await there.finish(there.parting("name", retry, is_kept=False))
            await here.renew("name", answer)
    assert known.request_id == "req-1"
    await here.close()
    await there.close()


async def test_a_finished_answer_reaches_a_server_that_was_away_for_a_moment(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "REST_S", 0.01)
    monkeypatch.setattr(shared, "FINISH_TRIES", 3000)
    here = SharedAnswers(redis_server.url, 5.0, 60.0)
    answer = recording_of("req-1")
    await here.claim("name", answer)
    answer.load(Head(200, [(b"content-type", b"application/json")]), [b"{}"])
    redis_server.kill()
    finishing = asyncio.create_task(here.finish(here.parting("name", answer, is_kept=True)))
    await asyncio.sleep(0.05)
    redis_server.restart()
    await finishing
    known = await here.of_request("key", "req-1")
    assert (known.state, known.body) == ("finished", b"{}")
    await here.close()


def recording_of(request_id: str) -> Recording:
    return Recording(request_id, "key", b"digest", Terms("m"), max_bytes=2**20, grace_s=30.0)


async def test_a_failure_gives_the_key_free_everywhere(nodes: Any) -> None:
    engine, _, (here, there) = nodes
    body = {**BODY, "fake": {"status": 422}}
    assert (await here.post(body=body, headers=ONCE)).status == 422
    await until(lambda: nodes[1][0].gateway.running == 0)
    assert (await there.post(body=body, headers=ONCE)).status == 422
    assert len(engine.bodies) == 2


async def test_an_answer_too_large_to_be_kept_is_not_made_twice(
    tmp_path: Path, postgres: PostgresServer, redis_url: str
) -> None:
    async with two_gateways(tmp_path, postgres, redis_url, replay_entry_bytes=256 * 1024) as (
        engine,
        gateways,
        callers,
    ):
        body = {**BODY, "stream": True, "fake": {"tokens": 300, "word_bytes": 2000}}
        assert (await callers[0].post(body=body, headers=ONCE)).status == 200
        await until(lambda: gateways[0].gateway.running == 0)
        again = await callers[1].post(body=body, headers=ONCE)
        assert (again.status, again.error["code"]) == (409, "replay_lost")
        assert len(engine.bodies) == 1


async def test_without_redis_requests_are_served_and_meet_at_their_gateway(
    tmp_path: Path, postgres: PostgresServer, redis_server: RedisServer
) -> None:
    async with two_gateways(tmp_path, postgres, redis_server.url) as (engine, _, (here, there)):
        redis_server.kill()
        first = await here.post(body=BODY, headers=ONCE)
        assert (first.status, (await here.post(body=BODY, headers=ONCE)).body) == (200, first.body)
        assert (await there.post(body=BODY, headers=ONCE)).status == 200
        assert len(engine.bodies) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_other_word_lists_let_pass_is_not_given_out_at_another_gateway(
    nodes: Any, stream: bool
) -> None:
    engine, gateways, (here, there) = nodes
    body = {**BODY, "stream": stream}
    first = await here.post(body=body, headers=ONCE)
    words = gateways[1].gateway.store.words

    def put_in_force() -> None:
        entry = Entry("w2", Level.MASK)
        words.activate("demo", words.add_version("demo", [entry], note="", by="test", now=1.0).version)

    await asyncio.to_thread(put_in_force)
    await gateways[1].gateway.words.refresh()
    refused = await there.post(body=body, headers=ONCE)
    assert (refused.status, refused.error["code"]) == (409, "word_lists_changed")
    if stream:
        headers = {"last-event-id": f"{first.headers['x-request-id']}:0"}
        assert (await there.post(body=body, headers=headers)).status == 409
    assert len(engine.bodies) == 1
    fresh = await there.post(body=body, headers={"idempotency-key": "order-18"})
    assert '"w2' not in fresh.body.decode()


async def test_erasing_a_user_drops_answers_that_wait_for_retries_everywhere(nodes: Any) -> None:
    engine, gateways, (here, there) = nodes
    store = gateways[0].gateway.store
    await asyncio.to_thread(store.people.insert, Owner(OwnerKind.ORG, "org-1", "acme", 1.0))
    await asyncio.to_thread(store.people.insert, Owner(OwnerKind.USER, "user-1", "ada", 1.0, None, "org-1"))
    key = await asyncio.to_thread(lambda: gateways[0].key(org_id="org-1", user_id="user-1"))
    theirs = [caller.with_key(key) for caller in (here, there)]
    for caller, name in zip((*theirs, here), ("a", "b", "c"), strict=True):
        await caller.post(body=BODY, headers={"idempotency-key": name})
    running = asyncio.create_task(
        theirs[0].post(body={**BODY, "fake": {"tokens": 2, "gated": True}}, headers={"idempotency-key": "d"})
    )
    await engine.until_running()
    service = RetentionService(store)
    proof = await asyncio.to_thread(service.erase, OPERATOR, "user:user-1")
    assert proof["answers_dropped_within_s"] == 5.0
    for each in gateways:
        await each.gateway.erasures.look()
    drops = await asyncio.to_thread(service.drops, proof)
    # "a" and "b" in Redis and in the memory of their gateways, "d" while it was made.
    assert sum(each["answers"] for each in drops) == 5
    engine.allow(2)
    assert (await running).status == 200
    await until(lambda: all(each.gateway.running == 0 for each in gateways))
    asked = len(engine.bodies)
    again = [await theirs[1].post(body=BODY, headers={"idempotency-key": name}) for name in ("a", "b")]
    assert [(reply.status, "x-replay-of" in reply.headers) for reply in again] == [(200, False)] * 2
    assert (await theirs[0].post(body={**BODY, "prompt": "new"}, headers={"idempotency-key": "d"})).status == 200
    assert len(engine.bodies) == asked + 3
    assert "x-replay-of" in (await there.post(body=BODY, headers={"idempotency-key": "c"})).headers


async def test_an_erasure_that_no_gateway_was_there_for_is_done_at_the_next_start(
    tmp_path: Path, postgres: PostgresServer, redis_url: str
) -> None:
    async with two_gateways(tmp_path, postgres, redis_url) as (engine, (one, two), (here, _)):
        await here.post(body=BODY, headers=ONCE)
        await one.gateway.erasures.close()
        await two.gateway.erasures.close()
        await asyncio.to_thread(RetentionService(one.gateway.store).erase, OPERATOR, f"key:{here.key_id}")
        gateway = two.gateway
        for _ in range(2):  # the second finds nothing left to do
            empty = ReplayBook(1, 1, 1, 1)
            late = Erasures(gateway.store, empty, gateway.shared_answers, gateway.executor, "late", 3600)
            await late.start()
            await late.look()
            await late.close()
            (entry,) = await asyncio.to_thread(gateway.store.audit.acts, DROP, 0, 2**40)
            assert json.loads(entry.after or "")["answers"] == 1
        assert len(engine.bodies) == 1


async def test_many_retries_at_once_are_not_taken_for_a_redis_that_is_away(redis_url: str) -> None:
    shared = SharedAnswers(redis_url, 5.0, 60)
    recordings = [Recording(f"req-{number}", "k", b"d", Terms(), max_bytes=9, grace_s=0) for number in range(200)]
    assert set(await asyncio.gather(*(shared.claim(each.request_id, each) for each in recordings))) == {None}
    again = await asyncio.gather(*(shared.claim(each.request_id, each) for each in recordings))
    assert [known and known.request_id for known in again] == [each.request_id for each in recordings]
    await shared.close()
