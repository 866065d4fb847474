"""Engines that fail, and others that take over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from deepseek_gateway.route.breaker import Outcome
from deepseek_gateway.testing.caller import Caller, next_event, until
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import RunningGateway, Stack, running_gateway
from deepseek_gateway.upstream import prober
from deepseek_gateway.upstream.connection import EngineConnection

NOWHERE = "http://127.0.0.1:9"


class Pair:
    def __init__(self, first: FakeEngine, second: FakeEngine, running: RunningGateway, caller: Caller) -> None:
        self.first, self.second, self.running, self.caller = first, second, running, caller


@pytest.fixture
async def pair(state_dir: Path) -> AsyncIterator[Pair]:
    """Two engines, one on TCP and one on a unix socket."""
    first, second = FakeEngine(), FakeEngine()
    async with (
        serving(first) as one,
        serving(second, uds=state_dir.with_name("e.sock")) as two,
        running_gateway(state_dir, one.url, two.url, upstream_probe_s=0.05) as running,
        aiohttp.ClientSession() as session,
    ):
        yield Pair(first, second, running, Caller(session, running.url, running.key()))


async def rows(running: RunningGateway, number: int) -> list:
    await until(lambda: running.gateway.running == 0)
    return await running.rows(number)


async def test_requests_go_to_the_engine_with_the_fewest_in_flight(pair: Pair) -> None:
    body = {"prompt": "a", "fake": {"tokens": 1, "gated": True}}
    asking = [asyncio.create_task(pair.caller.post(body=body)) for _ in range(4)]
    await until(lambda: len(pair.first.running) + len(pair.second.running) == 4)
    assert len(pair.first.running) == len(pair.second.running) == 2
    pair.first.allow(2)
    pair.second.allow(2)
    assert {(await reply).status for reply in asking} == {200}


@contextlib.asynccontextmanager
async def breaking_engine() -> AsyncIterator[tuple[str, list[str]]]:
    """An engine that is ready, and drops the connection of every POST; gives its URL and the requests it saw."""
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[0]
        seen.append(line)
        if line.startswith("GET"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("is_reached", [True, False])
async def test_probe_without_an_answer_tells_a_busy_engine_from_a_machine_that_is_off(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, is_reached: bool
) -> None:
    async def wait(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async with breaking_engine() as (url, _), running_gateway(state_dir, url) as running:
        (upstream,) = running.gateway.pool.upstreams
        await until(lambda: upstream.is_up)
        monkeypatch.setattr(prober, "PROBE_TIMEOUT_S", 0.1)
        if is_reached:
            monkeypatch.setattr(EngineConnection, "send", lambda self, request: Silent())
        else:
            monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", wait)
        await prober.Prober(running.gateway.pool).look(upstream, learn=False)
        assert upstream.is_up == is_reached
        monkeypatch.undo()


class Silent:
    """An answer that never begins."""

    async def head(self) -> None:
        await asyncio.Event().wait()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("stream", [True, False])
async def test_a_break_before_the_first_byte_goes_to_another_engine(state_dir: Path, stream: bool) -> None:
    sound = FakeEngine()
    async with (
        breaking_engine() as (broken_url, seen),
        serving(sound) as served,
        running_gateway(state_dir, broken_url, served.url, upstream_probe_s=60) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        # Without a model the engine that names none is a candidate too.
        running.gateway.pool.upstreams[1].models = ()
        while not any(line.startswith("POST") for line in seen):  # engines that are alike are chosen at random
            assert (await caller.post(body={"prompt": "a", "stream": stream})).status == 200
        for _ in range(4):
            assert (await caller.post(body={"prompt": "a", "stream": stream})).status == 200
        *before, second, _, _, _, _ = [row.attempt for row in await rows(running, len(sound.finished))]
        assert set(before) <= {1}
        assert second == 2
        assert sum(line.startswith("POST") for line in seen) == 1  # and then left alone


async def test_a_stream_that_ends_before_it_begins_goes_to_another_engine(pair: Pair) -> None:
    reply = await pair.caller.post(body={"prompt": "a", "stream": True, "fake": {"cut_after": 0}})
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert len(pair.first.bodies) == len(pair.second.bodies) == 1


async def test_an_unstreamed_answer_that_breaks_is_a_502(stack: Stack) -> None:
    reply = await stack.caller.post(body={"prompt": "a", "fake": {"cut_after": 3}})
    assert (reply.status, reply.error["type"]) == (502, "upstream_error")
    row = await stack.row()
    assert (row.status, row.accuracy) == ("failed", "estimated")


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_an_engine_that_refuses_is_passed_over(state_dir: Path, status: int) -> None:
    class Refusing(FakeEngine):
        async def _generate(self, path, headers, scope, receive, send) -> None:
            from deepseek_gateway.edge.respond import send_body

            await send_body(send, status, b'{"error": {"message": "no"}}')

    sound = FakeEngine()
    async with (
        serving(Refusing()) as one,
        serving(sound) as two,
        running_gateway(state_dir, one.url, two.url) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        assert {(await caller.post()).status for _ in range(4)} == {200}
        assert len(sound.finished) == 4


async def test_a_break_after_the_first_byte_is_an_error_event_and_no_second_try(pair: Pair) -> None:
    pair.first.allow(2)
    pair.second.allow(2)
    body = {"prompt": "a b", "stream": True, "fake": {"tokens": 9, "cut_after": 2, "gated": True}}
    async with pair.caller.open("/v1/generate", body) as answer:
        assert "w1" in await next_event(answer)
        assert "w2" in await next_event(answer)
        pair.first.allow()
        pair.second.allow()
        rest = (await answer.read()).decode()
    assert answer.status == 200
    assert rest.startswith("event: error\ndata: ")
    assert '"code":"upstream_cut"' in rest
    assert "[DONE]" not in rest
    assert len(pair.first.bodies) + len(pair.second.bodies) == 1
    (row,) = await rows(pair.running, 1)
    assert (row.status, row.end_reason, row.accuracy, row.completion_tokens) == (
        "failed",
        "upstream_error",
        "estimated",
        2,
    )


async def test_an_error_event_of_the_engine_reaches_the_caller_and_ends_the_stream(stack: Stack) -> None:
    reply = await stack.caller.post(body={"prompt": "a", "stream": True, "fake": {"error_after": 2}})
    assert reply.events[-1].startswith("event: error\ndata: ")
    assert "the script says so" in reply.events[-1]
    row = await stack.row()
    assert (row.status, row.completion_tokens, row.accuracy) == ("failed", 2, "exact")  # the engine ended it itself


async def test_an_engine_that_is_killed_and_returns_is_used_again(state_dir: Path) -> None:
    engine = FakeEngine()
    async with contextlib.AsyncExitStack() as cleanup:
        served = await cleanup.enter_async_context(serving(engine))
        port = int(served.url.rpartition(":")[2])
        running = await cleanup.enter_async_context(
            running_gateway(state_dir, served.url, upstream_probe_s=0.05, upstream_max_backoff_s=0.2)
        )
        session = await cleanup.enter_async_context(aiohttp.ClientSession())
        caller = Caller(session, running.url, running.key())
        assert (await caller.post()).status == 200
        served.kill()
        down = await caller.post()
        assert down.status in {502, 503}
        assert down.error["type"] in {"upstream_error", "overloaded_error"}
        assert int(down.headers["retry-after"]) >= 1
        assert "127.0.0.1" not in down.error["message"]
        await until(lambda: not running.gateway.pool.is_up)
        not_ready = await caller.get("/ready")
        assert (not_ready.status, not_ready.error["message"]) == (503, "no engine is up")
        refused = await caller.post()
        assert (refused.status, refused.error["code"]) == (503, "upstream_unavailable")
        await cleanup.enter_async_context(serving(engine, port=port))
        await until(lambda: running.gateway.pool.is_up)
        assert (await caller.get("/ready")).status == 200
        assert (await caller.post()).status == 200
        statuses = [row.status for row in await rows(running, 4)]
        assert statuses == ["finished", "failed", "failed", "finished"]
        assert all(row.prompt_tokens == 0 for row in await running.rows() if row.status == "failed")


async def test_a_request_may_try_an_engine_that_was_down_before_the_next_probe(state_dir: Path) -> None:
    engine = FakeEngine()
    async with (
        serving(engine) as served,
        running_gateway(state_dir, served.url, upstream_probe_s=60) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        (upstream,) = running.gateway.pool.upstreams
        upstream.breaker.note(Outcome.GONE, running.gateway.pool.now() - 60, may_eject=True)
        assert (await caller.post()).status == 200
        assert upstream.is_up


async def test_with_every_engine_gone_the_answer_is_a_503_in_the_error_shape(state_dir: Path) -> None:
    async with running_gateway(state_dir, NOWHERE) as running, aiohttp.ClientSession() as session:
        caller = Caller(session, running.url, running.key())
        for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}):
            reply = await caller.post(body=body)
            assert (reply.status, reply.error["type"]) == (503, "overloaded_error")
            assert reply.headers["retry-after"]
        assert (await caller.get("/v1/models")).status == 503


async def test_an_engine_that_refuses_the_gateways_key_is_a_502_and_not_the_callers_fault(state_dir: Path) -> None:
    engine = FakeEngine(api_key="upstream-secret")
    async with (
        serving(engine) as served,
        running_gateway(state_dir, served.url, upstream_key="wrong") as running,
        aiohttp.ClientSession() as session,
    ):
        reply = await Caller(session, running.url, running.key()).post()
        assert (reply.status, reply.error["type"]) == (502, "upstream_error")


async def test_the_gateways_own_key_reaches_the_engine(state_dir: Path) -> None:
    engine = FakeEngine(api_key="upstream-secret")
    async with (
        serving(engine) as served,
        running_gateway(state_dir, served.url, upstream_key="upstream-secret") as running,
        aiohttp.ClientSession() as session,
    ):
        assert (await Caller(session, running.url, running.key()).post()).status == 200


async def test_a_model_goes_to_the_engine_that_serves_it(state_dir: Path) -> None:
    first, second = FakeEngine(models=("one",)), FakeEngine(models=("two",))
    async with (
        serving(first) as at_first,
        serving(second) as at_second,
        running_gateway(state_dir, at_first.url, at_second.url) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        for _ in range(3):
            assert (await caller.post(body={"prompt": "a", "model": "two"})).json["model"] == "two"
        assert [model["id"] for model in (await caller.get("/models")).json["data"]] == ["one", "two"]


async def test_an_adapter_loaded_since_the_last_look_is_found_where_its_base_model_is(state_dir: Path) -> None:
    first, second = FakeEngine(models=("one",)), FakeEngine(models=("two",))
    async with (
        serving(first) as at_first,
        serving(second) as at_second,
        running_gateway(state_dir, at_first.url, at_second.url) as running,
        aiohttp.ClientSession() as session,
    ):
        second.models = ("two", "two:alice")
        caller = Caller(session, running.url, running.key())
        for _ in range(3):
            assert (await caller.post(body={"prompt": "a", "model": "two:alice"})).json["model"] == "two:alice"


async def test_an_engine_silent_for_too_long_is_given_up(state_dir: Path) -> None:
    engine = FakeEngine()
    async with (
        serving(engine) as served,
        running_gateway(state_dir, served.url, upstream_idle_timeout_s=0.4, keep_alive_s=0.2) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        fake = {"tokens": 9, "gated": True}
        assert (await caller.post(body={"prompt": "a", "fake": fake})).status == 502
        await until(lambda: running.gateway.running == 0)
        engine.allow()
        async with caller.open("/v1/generate", {"prompt": "a", "stream": True, "fake": fake}) as answer:
            rest = (await answer.read()).decode()
            assert rest.index("w1") < rest.index("event: error")
        assert {(row.status, row.accuracy) for row in await rows(running, 2)} == {("failed", "exact")}
        assert [done.finish for done in engine.finished] == ["abort", "abort"]
