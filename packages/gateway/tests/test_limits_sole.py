"""Gateways of one PostgreSQL that would not count limits together: one is refused, whenever it comes, or it is told."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deepseek_gateway.errors import ConfigurationError, StoreUnavailableError
from deepseek_gateway.limits import sole
from deepseek_gateway.storage.claim import Claim, marks_of, number_of
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.command import Command
from deepseek_gateway.testing.postgres import PostgresServer
from deepseek_gateway.testing.redis_server import RedisServer
from deepseek_gateway.testing.stack import running_gateway, running_stack

ENGINE = "http://127.0.0.1:9"


@pytest.fixture
def shared(postgres: PostgresServer) -> Iterator[dict[str, Any]]:
    """Settings of gateways of one store."""
    url = postgres.new_database()
    yield {"store_url": url, "key_pepper": "p" * 40, "drain_timeout_s": 1.0}
    postgres.drop_database(url)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not wait for others."""
    monkeypatch.setattr(sole, "GRACE_S", -2.0)


def claim_of(shared: dict[str, Any], *, is_shared: bool = False) -> Claim:
    return Claim(shared["store_url"], sole.LOCK, is_shared=is_shared)


@pytest.mark.usefixtures("impatient")
async def test_a_second_gateway_that_counts_apart_is_refused_and_told_the_way_out(
    tmp_path: Path, shared: dict[str, Any], redis_url: str
) -> None:
    async with running_gateway(tmp_path / "one", ENGINE, **shared):
        for more in ({}, {"redis_url": redis_url}):
            with pytest.raises(ConfigurationError, match=r"more than once: set GATEWAY_REDIS_URL .* or accept"):
                async with running_gateway(tmp_path / "two", ENGINE, **shared, **more):
                    pass
        async with running_gateway(tmp_path / "two", ENGINE, **shared, allow_local_limits=True):
            pass
    async with running_gateway(tmp_path / "two", ENGINE, **shared):
        pass


@pytest.mark.usefixtures("impatient")
async def test_gateways_with_redis_share_a_store_with_each_other_only(
    tmp_path: Path, shared: dict[str, Any], redis_url: str
) -> None:
    with_redis = {**shared, "redis_url": redis_url}
    async with (
        running_gateway(tmp_path / "one", ENGINE, **with_redis),
        running_gateway(tmp_path / "two", ENGINE, **with_redis),
    ):
        with pytest.raises(ConfigurationError, match="counts limits too"):
            async with running_gateway(tmp_path / "three", ENGINE, **shared):
                pass


async def test_a_start_waits_for_the_gateway_that_it_follows(tmp_path: Path, shared: dict[str, Any], caplog) -> None:
    other = claim_of(shared)
    async with running_gateway(tmp_path / "one", ENGINE, **shared):
        pass  # makes the tables
    assert await asyncio.to_thread(other.take)

    async def start() -> None:
        async with running_gateway(tmp_path / "one", ENGINE, **shared):
            pass

    starting = asyncio.create_task(start())
    await until(lambda: "waiting up to 16 s for it to end" in caplog.text)
    other.close()
    await starting


END = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE application_name = 'deepseek-gateway limits' AND datname = current_database()"
)


def end_sessions(url: str) -> int:
    """End the sessions that hold claims, as a restart of the server does; gives how many."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(END).fetchone()
        return 0 if row is None else row[0]


async def test_a_lost_claim_is_taken_again_or_told(
    tmp_path: Path, shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(sole, "CHECK_S", 0.02)
    url, other, is_hindered = shared["store_url"], claim_of(shared), False
    take = Claim.take

    def hindered(claim: Claim) -> bool:
        if is_hindered and claim is not other:
            claim.close()  # as if the session had ended
        return False if is_hindered and claim is not other and not other_holds.is_set() else take(claim)

    monkeypatch.setattr(Claim, "take", hindered)
    other_holds = threading.Event()
    async with running_stack(tmp_path / "one", **shared) as stack:

        async def is_ready() -> bool:
            return (await stack.caller.get("/ready")).status == 200

        assert await asyncio.to_thread(end_sessions, url) == 1
        async with asyncio.timeout(30):
            while await asyncio.to_thread(end_sessions, url) == 0:  # it was taken again
                pass
        assert await is_ready()
        is_hindered = True  # now another one is faster
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(other.take):
                pass
        other_holds.set()
        await until(lambda: stack.gateway.sole.trouble is not None)
        assert not await is_ready()
        assert "another gateway that uses this store counts limits too" in caplog.text
        assert "deepseek_gateway_limits_kept 0.0" in (await stack.caller.get("/metrics")).body.decode()
        other.close()
        is_hindered = False
        await until(lambda: stack.gateway.sole.trouble is None)
        assert await is_ready()


def others_of(redis_url: str, number: int) -> str:
    """The URL of another database of the same server."""
    return f"{redis_url}?db={number}"


@pytest.mark.usefixtures("impatient")
async def test_a_gateway_that_would_count_in_another_redis_is_refused_and_told_the_way_out(
    tmp_path: Path, shared: dict[str, Any], redis_url: str
) -> None:
    other = others_of(redis_url, 1)
    async with running_gateway(tmp_path / "one", ENGINE, **shared, redis_url=redis_url) as one:
        with pytest.raises(ConfigurationError, match=r"in another Redis, .*: give all gateways .* the same GATEWAY_RE"):
            async with running_gateway(tmp_path / "two", ENGINE, **shared, redis_url=other):
                pass
        async with running_gateway(tmp_path / "two", ENGINE, **shared, redis_url=redis_url):
            pass
        async with running_gateway(tmp_path / "two", ENGINE, **shared, redis_url=other, allow_local_limits=True):
            pass
        assert one.gateway.sole.apart is None
    await until(lambda: marks_of(shared["store_url"]) == frozenset())
    async with running_gateway(tmp_path / "two", ENGINE, **shared, redis_url=other):
        pass  # nobody counts in the first any more


async def test_check_says_that_gateways_count_in_another_redis(
    tmp_path: Path, shared: dict[str, Any], redis_url: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_STORE_URL", shared["store_url"])
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", shared["key_pepper"])
    async with running_gateway(tmp_path / "one", ENGINE, **shared, redis_url=redis_url):
        for url, is_fault in ((redis_url, False), (others_of(redis_url, 1), True)):
            monkeypatch.setenv("GATEWAY_REDIS_URL", url)
            _, said, _ = await asyncio.to_thread(command, "check", "--state", tmp_path / "two")
            assert ("fault: other gateways that use this store count limits in another Redis" in said) == is_fault


async def test_gateways_that_come_to_count_apart_tell_it_and_serve_on(
    tmp_path: Path, shared: dict[str, Any], redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(sole, "CHECK_S", 0.02)
    patient = {**shared, "redis_url": redis_url, "redis_timeout_s": 5.0}
    other = claim_of(shared, is_shared=True)
    async with running_stack(tmp_path / "one", **patient) as stack:
        assert await asyncio.to_thread(other.take)
        assert not await asyncio.to_thread(other.mark, "another memory")
        await until(lambda: stack.gateway.sole.apart is not None)
        ready = await stack.caller.get("/ready")
        assert (ready.status, ready.json["faults"]) == (200, [sole.APART])
        assert sole.ONE_WAY_OUT in caplog.text
        assert "deepseek_gateway_limits_kept 0.0" in (await stack.caller.get("/metrics")).body.decode()
        assert (await stack.caller.post()).status == 200
        await asyncio.to_thread(other.close)
        await until(lambda: stack.gateway.sole.apart is None)
        assert "faults" not in (await stack.caller.get("/ready")).json


async def test_gateways_of_one_redis_stay_together_when_it_loses_its_memory_or_goes(
    tmp_path: Path, shared: dict[str, Any], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(sole, "CHECK_S", 0.02)
    patient = {**shared, "redis_url": redis_server.url, "redis_timeout_s": 5.0, "redis_beat_s": 0.02}
    monkeypatch.setattr(sole, "PATIENCE", 1000)  # between two looks of one, the other may not get its turn
    async with (
        running_gateway(tmp_path / "one", ENGINE, **patient) as one,
        running_gateway(tmp_path / "two", ENGINE, **patient) as two,
    ):
        nodes = [one.gateway.sole, two.gateway.sole]
        memories = [one.gateway._redis_memory, two.gateway._redis_memory]

        def is_together() -> bool:
            return all(memory() not in {None, before} for memory in memories) and memories[0]() == memories[1]()

        for lose in (redis_server.flush, redis_server.kill):
            before = memories[0]()
            lose()
            if lose == redis_server.kill:
                await until(lambda: not any(memory() for memory in memories))
                await until(lambda: marks_of(shared["store_url"]) == frozenset())  # who counts nowhere shows nothing
                redis_server.restart()
            await until(is_together)
            await until(lambda: marks_of(shared["store_url"]) == {number_of(str(memories[0]()))})
        assert [node.apart for node in nodes] == [None, None]


def test_claims_show_what_they_stand_for_until_their_session_ends(shared: dict[str, Any]) -> None:
    url, claims = shared["store_url"], [claim_of(shared, is_shared=True) for _ in range(3)]
    first, second, third = claims
    for each in claims:
        assert each.take()
    assert first.mark("a", if_alone=True)
    assert second.mark("a", if_alone=True)
    assert not third.mark("b", if_alone=True)
    assert marks_of(url) == {number_of("a")}  # it was not shown
    assert not third.mark("b")
    assert marks_of(url) == {number_of("a"), number_of("b")}
    assert not first.mark("b")  # the second still stands for the other
    assert second.mark("b")
    assert second.mark("b")
    third.close()
    assert not first.mark(None)
    second.close()
    deadline = time.monotonic() + 30
    while marks_of(url):  # the server ends a session in its own time
        assert time.monotonic() < deadline
    with pytest.raises(StoreUnavailableError):
        second.mark("b")
    first.close()
