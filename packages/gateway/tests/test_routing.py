"""Several engines behind one gateway: affinity, aliases, fallbacks, the queue, overload, deaths and returns, hedges."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.route.load import LoadReport
from deepseek_gateway.testing.caller import Caller, Reply, next_event, until
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.serving import Served, serving
from deepseek_gateway.testing.stack import RunningGateway, running_gateway

GATED = {"prompt": "a", "fake": {"tokens": 1, "gated": True}}
STREAM = {"prompt": "a", "stream": True, "fake": {"tokens": 2, "gated": True}}


@dataclass(frozen=True)
class Fleet:
    """Engines `e0`, `e1`, … and the gateway before them."""

    engines: list[FakeEngine]
    served: list[Served]
    running: RunningGateway
    caller: Caller

    @property
    def pool(self):
        return self.running.gateway.pool

    async def until_at_engines(self, number: int) -> None:
        await until(lambda: sum(len(engine.running) for engine in self.engines) == number)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        text = (await self.caller.get("/metrics")).body.decode()
        found = re.findall(rf"^deepseek_gateway_{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for given, value in found if all(one in given for one in wanted))


@contextlib.asynccontextmanager
async def fleet(
    state_dir: Path, number: int, *, upstream: dict[str, Any] | None = None, **settings: object
) -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as cleanup:
        engines = [FakeEngine() for _ in range(number)]
        served = [await cleanup.enter_async_context(serving(engine)) for engine in engines]
        upstreams = [{"name": f"e{at}", "url": one.url, **(upstream or {})} for at, one in enumerate(served)]
        settings = {"upstream_probe_s": 0.05, "upstream_load_s": 60.0, "upstream_max_backoff_s": 0.2, **settings}
        running = await cleanup.enter_async_context(running_gateway(state_dir, *upstreams, **settings))
        session = await cleanup.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        yield Fleet(engines, served, running, Caller(session, running.url, running.key()))


def code_of(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.error["code"]


async def test_a_session_stays_at_its_engine_and_moves_only_when_that_leaves(state_dir: Path) -> None:
    async with fleet(state_dir, 3) as at:

        async def ask(session: str) -> str:
            before = [len(engine.finished) for engine in at.engines]
            assert (await at.caller.post(headers={"x-session-id": session})).status == 200
            return next(f"e{number}" for number in range(3) if len(at.engines[number].finished) > before[number])

        sessions = [f"session {number}" for number in range(12)]
        homes = {session: await ask(session) for session in sessions}
        assert len(set(homes.values())) > 1
        assert {session: await ask(session) for session in sessions} == homes
        gone = homes[sessions[0]]
        at.engines[int(gone[1])].is_ready = False
        await until(lambda: not at.pool.upstreams[int(gone[1])].is_up)
        now = {session: await ask(session) for session in sessions}
        assert all(now[session] == homes[session] for session in sessions if homes[session] != gone)
        assert gone not in now.values()


async def test_requests_with_one_beginning_meet_at_one_engine_within_the_bound(state_dir: Path) -> None:
    async with fleet(state_dir, 4) as at:
        body = {**GATED, "prompt": "The same long beginning of many prompts, as a system prompt is. " * 3}
        asking = [asyncio.create_task(at.caller.post(body=body)) for _ in range(16)]
        await at.until_at_engines(16)
        loads = sorted(len(engine.running) for engine in at.engines)
        assert loads[-1] == 5  # 1.25 times the mean of 4
        for engine in at.engines:
            engine.allow(16)
        assert {(await reply).status for reply in asking} == {200}


async def test_callers_see_the_alias_and_the_books_keep_both_names(state_dir: Path) -> None:
    models = [{"name": "chat", "targets": [{"upstream": "e0", "model": "fake-model"}]}]
    async with fleet(state_dir, 2, models=models) as at:
        whole = await at.caller.post(body={"prompt": 'say "model":"x"', "model": "chat"})
        assert whole.json["model"] == "chat"
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
            ("/v1/completions", {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}),
        ):
            chunks = (await at.caller.post(path, {**body, "model": "chat"})).chunks
            assert {chunk["model"] for chunk in chunks} == {"chat"}
        assert len(at.engines[0].bodies) == 3
        assert {body["model"] for body in at.engines[0].bodies} == {"fake-model"}
        assert {row.model for row in await at.running.rows(3)} == {"chat"}
        listed = [model["id"] for model in (await at.caller.get("/models")).json["data"]]
        assert listed == ["chat", "fake-model"]
        assert (await at.caller.get("/models/chat")).json["id"] == "chat"
        only = at.caller.with_key(at.running.key(models=["chat"]))
        assert (await only.post(body={"prompt": "a", "model": "chat"})).status == 200
        assert (await only.post(body={"prompt": "a", "model": "fake-model"})).status == 403


async def test_a_pool_is_shared_by_weight_and_a_higher_tier_takes_what_the_lower_cannot(state_dir: Path) -> None:
    targets = [
        {"upstream": "e0", "model": "fake-model", "weight": 3},
        {"upstream": "e1", "model": "fake-model", "weight": 1},
        {"upstream": "e2", "model": "fake-model", "tier": 1},
    ]
    async with fleet(state_dir, 3, models=[{"name": "chat", "targets": targets}]) as at:
        body = {**GATED, "model": "chat"}
        asking = [asyncio.create_task(at.caller.post(body=body)) for _ in range(40)]
        await at.until_at_engines(40)
        loads = [len(engine.running) for engine in at.engines]
        assert loads[2] == 0
        assert 26 <= loads[0] <= 34
        for engine in at.engines:
            engine.allow(100)
        assert {(await reply).status for reply in asking} == {200}
        for number in (0, 1):
            at.engines[number].is_ready = False
        await until(lambda: not at.pool.upstreams[0].is_up and not at.pool.upstreams[1].is_up)
        assert (await at.caller.post(body=body)).status == 200
        assert len(at.engines[2].bodies) == 1


async def test_a_request_waits_for_room_with_comments_and_goes_when_there_is_some(state_dir: Path) -> None:
    async with fleet(state_dir, 1, upstream={"capacity": 1}, keep_alive_s=0.2) as at:
        first = asyncio.create_task(at.caller.post(body=GATED))
        await at.until_at_engines(1)
        async with at.caller.open("/v1/generate", STREAM) as second:
            assert await next_event(second) == ": keep-alive"
            assert await at.metric("queue_length", priority="normal") == 1
            assert len(at.engines[0].running) == 1
            at.engines[0].allow(3)
            assert (await first).status == 200
            assert "w2" in (await second.read()).decode()
        assert await at.metric("queue_wait_seconds_count", priority="normal", outcome="placed") == 1
        assert all(upstream.in_flight == 0 for upstream in at.pool.upstreams)


async def test_a_full_queue_and_a_long_wait_are_503_with_retry_after_and_bill_nothing(state_dir: Path) -> None:
    async with fleet(state_dir, 1, upstream={"capacity": 1}, queue_size=1, queue_timeout_s=0.3) as at:
        first = asyncio.create_task(at.caller.post(body=GATED))
        await at.until_at_engines(1)
        second = asyncio.create_task(at.caller.post(body=GATED))
        await until(lambda: len(at.pool.gate) == 1)
        third = await at.caller.post(body=GATED)
        assert code_of(third) == (503, "queue_full")
        assert code_of(await second) == (503, "queue_timeout")
        assert int(third.headers["retry-after"]) >= 1
        at.engines[0].allow()
        assert (await first).status == 200
        rows = {row.end_reason: row for row in await at.running.rows(3)}
        for reason in ("queue_full", "queue_timeout"):
            row = rows[reason]
            assert (row.status, row.prompt_tokens, row.accuracy, row.upstream) == ("failed", 0, "exact", None)


async def test_a_caller_that_leaves_the_queue_frees_its_place(state_dir: Path) -> None:
    async with fleet(state_dir, 1, upstream={"capacity": 1}) as at:
        first = asyncio.create_task(at.caller.post(body=GATED))
        await at.until_at_engines(1)
        leaving = asyncio.create_task(at.caller.post(body=GATED))
        await until(lambda: len(at.pool.gate) == 1)
        leaving.cancel()
        await until(lambda: len(at.pool.gate) == 0)
        at.engines[0].allow()
        assert (await first).status == 200
        assert "client_disconnect" in {row.end_reason for row in await at.running.rows(2)}
        assert len(at.engines[0].bodies) == 1


async def test_a_drain_empties_the_queue_and_lets_the_rest_finish(state_dir: Path) -> None:
    async with fleet(state_dir, 1, upstream={"capacity": 1}) as at:
        first = asyncio.create_task(at.caller.post(body=GATED))
        await at.until_at_engines(1)
        waiting = asyncio.create_task(at.caller.post(body=GATED))
        await until(lambda: len(at.pool.gate) == 1)
        draining = asyncio.create_task(at.running.gateway.drain())
        assert code_of(await waiting) == (503, "shutting_down")
        at.engines[0].allow()
        assert (await first).status == 200
        await draining


async def test_the_queue_is_fair_between_organisations_and_knows_classes(state_dir: Path) -> None:
    async with fleet(state_dir, 1, upstream={"capacity": 1}) as at:
        first = asyncio.create_task(at.caller.post(body=GATED))
        await at.until_at_engines(1)
        greedy = [asyncio.create_task(at.caller.post(body={**GATED, "user": "greedy"})) for _ in range(6)]
        await until(lambda: len(at.pool.gate) == 6)
        other = at.caller.with_key(at.running.key())
        urgent = at.caller.with_key(at.running.key(tags=["priority:high"]))
        asking = [
            asyncio.create_task(other.post(body={**GATED, "user": "modest"})),
            asyncio.create_task(urgent.post(body={**GATED, "user": "urgent"})),
            asyncio.create_task(urgent.post(body={**GATED, "user": "lowered"}, headers={"x-priority": "low"})),
        ]
        await until(lambda: len(at.pool.gate) == 9)
        assert await at.metric("queue_length", priority="low") == 1
        at.engines[0].allow(20)
        assert {(await reply).status for reply in [first, *greedy, *asking]} == {200}
        order = [body.get("user") for body in at.engines[0].bodies[1:]]
        assert order.index("urgent") <= 1
        assert order.index("modest") <= 3
        assert (await at.caller.post(headers={"x-priority": "now"})).status == 400


async def test_an_engine_that_dies_under_load_costs_no_request_that_had_no_byte_and_comes_back(state_dir: Path) -> None:
    async with fleet(state_dir, 3, max_requests=200) as at:
        body = {"prompt": "a", "fake": {"tokens": 1, "gated": True}}
        waiting = [asyncio.create_task(at.caller.post(body=body)) for _ in range(24)]
        await at.until_at_engines(24)
        port = int(at.served[0].url.rpartition(":")[2])
        lost = len(at.engines[0].running)
        assert lost > 0
        at.served[0].kill()
        await until(lambda: sum(len(engine.running) for engine in at.engines[1:]) == 24)
        for engine in at.engines[1:]:
            engine.allow(100)
        assert {(await reply).status for reply in waiting} == {200}
        rows = await at.running.rows(24)
        assert sum(row.attempt == 2 for row in rows) == lost
        assert {row.upstream for row in rows} == {"e1", "e2"}
        assert await at.metric("retries_total", outcome="tried") == lost
        assert await at.metric("upstream_up", upstream="e0") == 0
        assert await at.metric("upstream_ejections_total", upstream="e0") == 1
        async with serving(FakeEngine(), port=port) as back:
            assert back.url == at.served[0].url
            await until(lambda: at.pool.upstreams[0].is_up)
            before = len(at.engines[1].finished) + len(at.engines[2].finished)
            for number in range(24):
                session = {"x-session-id": str(number)}
                assert (await at.caller.post(headers=session)).status == 200
            assert len(at.engines[1].finished) + len(at.engines[2].finished) < before + 24


async def test_retries_stop_when_their_budget_is_spent(state_dir: Path) -> None:
    class Refusing(FakeEngine):
        async def _generate(self, path, headers, scope, receive, send) -> None:
            self.bodies.append({})
            await send_body(send, 500, b'{"error": {"message": "no"}}')

    first, second = Refusing(), Refusing()
    async with (
        serving(first) as one,
        serving(second) as two,
        running_gateway(state_dir, one.url, two.url, retry_share=0.0) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        assert {(await caller.post()).status for _ in range(30)} == {502}
        assert len(first.bodies) + len(second.bodies) == 30 + 10


async def test_a_faulty_engine_is_left_alone_but_never_more_than_half_of_them(state_dir: Path) -> None:
    async with fleet(state_dir, 2, max_attempts=1, upstream_probe_s=60.0) as at:
        cut = {"prompt": "a", "stream": True, "fake": {"cut_after": 0}}
        for number in range(40):
            await at.caller.post(body=cut, headers={"x-session-id": str(number)})
        assert sorted(upstream.is_up for upstream in at.pool.upstreams) == [False, True]
        assert await at.metric("upstream_ejections_total", cause="fault") == 1
        assert (await at.caller.post()).status == 200


async def test_retry_after_of_an_engine_is_respected(state_dir: Path) -> None:
    class Throttled(FakeEngine):
        async def _generate(self, path, headers, scope, receive, send) -> None:
            self.bodies.append({})
            await send_body(send, 429, b'{"error": {"message": "slow down"}}', headers={"retry-after": "20"})

    throttled, sound = Throttled(), FakeEngine()
    async with (
        serving(throttled) as one,
        serving(sound) as two,
        running_gateway(state_dir, one.url, two.url) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        for number in range(20):
            assert (await caller.post(headers={"x-session-id": str(number)})).status == 200
        assert len(throttled.bodies) == 1
        assert running.gateway.pool.upstreams[0].is_up
    async with (
        serving(throttled) as one,
        running_gateway(state_dir, one.url) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        for _ in range(2):
            refused = await caller.post()
            assert refused.status == 503
            assert 10 <= int(refused.headers["retry-after"]) <= 20
        assert len(throttled.bodies) == 2


async def test_what_engines_say_of_their_load_counts(state_dir: Path) -> None:
    async with fleet(state_dir, 2, upstream_load_s=0.02) as at:
        at.engines[0].others = 50
        await until(lambda: (report := at.pool.upstreams[0].report) is not None and report.foreign == 50)
        assert await at.metric("upstream_load", upstream="e0") > 10
        for _ in range(6):
            assert (await at.caller.post()).status == 200
        assert len(at.engines[0].finished) == 0
        assert len(at.engines[1].finished) == 6


async def test_a_slow_engine_gets_fewer_requests_than_a_fast_one(state_dir: Path) -> None:
    async with fleet(state_dir, 2) as at:
        slow, fast = at.engines
        at_slow, at_fast = at.pool.upstreams
        asking: list[asyncio.Task[Reply]] = []
        fast.allow(1000)
        for _ in range(30):
            asking.append(asyncio.create_task(at.caller.post(body=GATED)))
            await until(lambda: len(slow.running) + len(fast.finished) == len(asking))
            await until(lambda: (at_slow.in_flight, at_fast.in_flight) == (len(slow.running), 0))
        assert len(slow.running) <= 2  # nothing more while it has those
        slow.allow(1000)
        assert {(await reply).status for reply in asking} == {200}


async def test_overload_is_turned_away_at_once_and_the_lowest_class_first(state_dir: Path) -> None:
    async with fleet(state_dir, 2, shed_engine_queue=10, shed_loop_lag_s=1000.0) as at:
        for upstream in at.pool.upstreams:
            upstream.report = LoadReport(8, 12, 0.5, 0, at.pool.now())
        urgent = at.caller.with_key(at.running.key(tags=["priority:high"]))
        assert (await urgent.post()).status == 200
        shed = await at.caller.post()
        assert code_of(shed) == (503, "overloaded")
        assert int(shed.headers["retry-after"]) >= 1
        assert await at.metric("shed_requests_total", reason="engine_queue") == 1
        for upstream in at.pool.upstreams:
            upstream.report = None
        at.running.gateway.loop_lag.seconds = 1e9  # it falls with each look at the loop
        assert code_of(await at.caller.post()) == (503, "overloaded")
        assert await at.metric("shed_requests_total", reason="loop_lag") == 1


async def test_under_a_flood_every_request_is_served_or_refused_and_no_place_is_lost(state_dir: Path) -> None:
    async with fleet(state_dir, 3, upstream={"capacity": 2}, queue_size=20, queue_timeout_s=20.0) as at:
        keys = [at.caller.with_key(at.running.key()) for _ in range(4)]
        body = {"prompt": "a", "fake": {"tokens": 2, "delay_s": 0.002}}
        asking = [asyncio.create_task(keys[number % 4].post(body=body)) for number in range(80)]
        for number in range(0, 80, 9):
            asking[number].cancel()
        replies = await asyncio.gather(*asking, return_exceptions=True)
        seen = Counter(reply.status if isinstance(reply, Reply) else "left" for reply in replies)
        assert set(seen) <= {200, 503, "left"}
        assert seen[200] >= 20
        await until(lambda: at.running.gateway.running == 0)
        assert all(upstream.in_flight == 0 for upstream in at.pool.upstreams)
        assert len(at.pool.gate) == 0
        assert max(len(engine.running) for engine in at.engines) == 0


async def slow_to_begin(at: Fleet) -> FakeEngine:
    """Make the pool know that streams begin in 10 ms, and the engine of session `s` closed; gives that engine."""
    for _ in range(60):
        at.pool.first_bytes.add(0.01)
    at.pool.hedges.level = 2.0
    before = [len(engine.bodies) for engine in at.engines]
    await at.caller.post(headers={"x-session-id": "s"})
    return next(engine for engine, number in zip(at.engines, before, strict=True) if len(engine.bodies) > number)


async def test_a_stream_that_is_slow_to_begin_is_hedged_and_the_loser_ends_and_costs_nothing(state_dir: Path) -> None:
    async with fleet(state_dir, 2, hedge_share=0.02) as at:
        slow = await slow_to_begin(at)
        fast = next(engine for engine in at.engines if engine is not slow)
        fast.allow(10)
        reply = await at.caller.post(body=STREAM, headers={"x-session-id": "s"})
        assert reply.chunks[-1]["finish_reason"] is not None
        await until(lambda: not slow.running)
        assert slow.finished[-1].finish == "abort"
        row = (await at.running.rows(2))[-1]
        assert (row.attempt, row.completion_tokens, row.accuracy) == (2, 2, "exact")
        assert await at.metric("hedges_total", outcome="won") == 1
        await until(lambda: all(upstream.in_flight == 0 for upstream in at.pool.upstreams))


async def test_hedges_stay_within_their_budget(state_dir: Path) -> None:
    async with fleet(state_dir, 2, hedge_share=0.02) as at:
        slow = await slow_to_begin(at)
        at.pool.hedges.level = 0.5
        asking = asyncio.create_task(at.caller.post(body=STREAM, headers={"x-session-id": "s"}))
        await until(lambda: len(slow.running) == 1)
        while not await at.metric("hedges_total", outcome="no_budget"):
            pass
        slow.allow(2)
        assert (await asking).status == 200
        assert len([row for row in await at.running.rows(2) if row.attempt == 2]) == 0


@pytest.mark.parametrize("model", ["nobody-has-it", "nobody:has-it"])
async def test_a_model_that_no_upstream_may_serve_is_a_404(state_dir: Path, model: str) -> None:
    async with fleet(state_dir, 1, upstream={"models": ["fake-model"], "renames": {"ours": "fake-model"}}) as at:
        refused = await at.caller.post(body={"prompt": "a", "model": model})
        assert code_of(refused) == (404, "model_not_found")
        renamed = await at.caller.post(body={"prompt": "a", "model": "ours"})
        assert (renamed.status, renamed.json["model"]) == (200, "ours")
