"""A stack of fake engine, gateway and caller for each test."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deepseek_gateway.testing.redis_server import PROGRAMS, RedisServer, redis_program
from deepseek_gateway.testing.redis_server import redis_server as running_redis
from deepseek_gateway.testing.stack import Stack, running_stack


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own GATEWAY_* variables must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A short path: unix sockets allow about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        yield Path(folder) / "state"


@pytest.fixture
async def stack(state_dir: Path) -> AsyncIterator[Stack]:
    async with running_stack(state_dir, upstream_probe_s=0.05) as running:
        yield running


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for the whole run. Tests that break it take `redis_server` instead."""
    if redis_program() is None:
        pytest.skip(f"no Redis: install one of {', '.join(PROGRAMS)}")
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """A real, empty Redis or Valkey."""
    shared_redis.flush()
    return shared_redis.url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server of the test's own: to pause, kill and restart."""
    if redis_program() is None:
        pytest.skip(f"no Redis: install one of {', '.join(PROGRAMS)}")
    with running_redis() as server:
        yield server
