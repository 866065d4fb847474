"""Gateways of one PostgreSQL that would not count limits together: one is refused, whenever it comes."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.limits import sole
from deepseek_gateway.storage.claim import Claim
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.postgres import PostgresServer
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
