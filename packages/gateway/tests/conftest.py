"""A stack of fake engine, gateway and caller for each test."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from argon2 import PasswordHasher

from deepseek_gateway.storage.database import Database
from deepseek_gateway.storage.store import Store, migrate_store, open_database
from deepseek_gateway.testing.command import Command
from deepseek_gateway.testing.postgres import PostgresServer, ServerNotInstalledError, postgres_server
from deepseek_gateway.testing.redis_server import PROGRAMS, RedisServer, redis_program
from deepseek_gateway.testing.redis_server import redis_server as running_redis
from deepseek_gateway.testing.stack import Stack, running_stack
from deepseek_gateway.testing.visitor import PASSWORD, Visitor
from deepseek_gateway.web.accounts import Accounts


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for all tests."""
    try:
        context = postgres_server()
        server = context.__enter__()
    except ServerNotInstalledError as error:
        pytest.skip(str(error))
    yield server
    context.__exit__(None, None, None)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The two kinds of store, fresh and migrated: None is SQLite in the state directory."""
    if request.param == "sqlite":
        yield None
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def database(store_url: str | None, tmp_path: Path) -> Iterator[Database]:
    """A migrated database of each kind."""
    path = tmp_path / "store.sqlite3"
    if store_url is None:
        migrate_store(path, None)
    opened = open_database(path, store_url)
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database) -> Store:
    """A store of each kind."""
    return Store(database)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`deepseek-gateway`, called in this process."""
    return Command(capsys.readouterr)


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


@pytest.fixture
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2id with the least work: what it costs in earnest is not what these tests are about."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr("deepseek_gateway.web.accounts._HASHER", hasher)
    monkeypatch.setattr("deepseek_gateway.web.accounts._nobody", lambda: hasher.hash("nobody"))


@pytest.fixture
async def visitor(stack: Stack, cheap_passwords: None) -> AsyncIterator[Visitor]:
    """An administrator who is signed in to the pages."""
    await asyncio.to_thread(Accounts(stack.gateway.store).create, "admin", PASSWORD)
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        visitor = Visitor(session, stack.running.url)
        await visitor.sign_in()
        yield visitor
