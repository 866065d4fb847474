"""The store goes away, the disk fills up, the clock jumps: nothing accepted is lost, and all heals by itself."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import pytest

from deepseek_gateway.errors import StoreValueError
from deepseek_gateway.ledger.journal import Journal
from deepseek_gateway.ledger.ledger import Ledger
from deepseek_gateway.ledger.records import Admission, TokenCounts
from deepseek_gateway.storage.store import Store, open_store
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.postgres import PostgresServer, postgres_server
from deepseek_gateway.testing.processes import FAKE_ENGINE, RunningProcess, make_state
from deepseek_gateway.testing.stack import Stack, running_stack

FULL = """
import resource, signal, sys
from pathlib import Path
journal = Path(sys.argv[1])

def fill(*_):
    size = max(path.stat().st_size for path in journal.glob("*.log"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def free(*_):
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

signal.signal(signal.SIGUSR1, fill)
signal.signal(signal.SIGUSR2, free)
from deepseek_gateway.cli import main
sys.exit(main(sys.argv[2:]))
"""
"""A gateway whose disk is full from SIGUSR1 to SIGUSR2: no file of it may become larger."""


@pytest.fixture
def own_postgres(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that a test may kill; only where PostgreSQL is installed."""
    with postgres_server() as server:
        yield server


async def ask(stack: Stack) -> int:
    return (await stack.caller.post(body={"prompt": "a b", "stream": True})).status


async def test_rows_wait_while_postgresql_is_down_and_reach_it_when_it_is_back(
    state_dir: Path, own_postgres: PostgresServer
) -> None:
    url = own_postgres.new_database()
    async with running_stack(state_dir, store_url=url, key_cache_ttl_s=5) as stack:
        assert await ask(stack) == 200
        await stack.running.rows(1)
        await asyncio.to_thread(own_postgres.stop)
        assert {await ask(stack) for _ in range(3)} == {200}  # the key is known for some seconds
        assert stack.gateway.ledger.pending_rows == 3
        await asyncio.to_thread(own_postgres.start)
        await until(lambda: stack.gateway.ledger.pending_rows == 0, timeout_s=30)
        rows = await stack.running.rows(4)
        truth = stack.engine.truth
        store = stack.gateway.store
        assert (await asyncio.to_thread(store.audit.verify))[1] is None
    assert sum(row.prompt_tokens + row.completion_tokens for row in rows) == truth.prompt + truth.completion


async def test_a_text_that_postgresql_cannot_hold_holds_up_no_other_row(
    state_dir: Path, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.new_database()
    async with running_stack(state_dir, store_url=url) as stack:
        assert (await stack.caller.post(body={"prompt": "a b", "model": "fake-model:\0"})).status == 400
        unary = {"prompt": "a b", "fake": {"finish": "st\0op"}}
        assert (await stack.caller.post(body=unary)).json["finish_reason"] == "st\0op"
        admission = Admission("req-other", "key", "/v1/generate", "m", True, time.time())
        row = replace((await stack.running.rows(1))[0], request_id="req-nul", end_reason="a\0b")
        for each in (row, replace(row, request_id="req-other", end_reason="stop")):
            stack.gateway.ledger.admit(replace(admission, request_id=each.request_id))
            stack.gateway.ledger.settle(each)
        rows = await stack.running.rows(2)
        store = stack.gateway.store
        assert (await asyncio.to_thread(store.audit.verify))[1] is None
    assert [row.end_reason for row in rows] == ["st?op", "stop"]
    assert "req-nul" in caplog.text


def test_what_a_store_cannot_hold_is_told_from_a_store_that_is_away(store: Store) -> None:
    with pytest.raises(StoreValueError):
        store.keys.find("\ud800")


async def test_rows_wait_while_postgresql_is_read_only(state_dir: Path, postgres: PostgresServer) -> None:
    url = postgres.new_database()

    def set_read_only(value: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            name = connection.info.dbname
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}".encode())
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                (name,),
            )

    async with running_stack(state_dir, store_url=url) as stack:
        assert await ask(stack) == 200
        await stack.running.rows(1)
        await asyncio.to_thread(set_read_only, "on")
        assert {await ask(stack) for _ in range(2)} == {200}
        assert stack.gateway.ledger.pending_rows == 2
        await asyncio.to_thread(set_read_only, "off")
        await until(lambda: stack.gateway.ledger.pending_rows == 0, timeout_s=30)
        assert len(await stack.running.rows(3)) == 3


def post(url: str, key: str) -> int:
    body = {"prompt": "a b c", "fake": {"tokens": 2}}
    return httpx.post(f"{url}/generate", json=body, headers={"authorization": f"Bearer {key}"}).status_code


def test_a_full_disk_refuses_requests_and_heals_when_there_is_room(state_dir: Path) -> None:
    key = make_state(state_dir)
    with RunningProcess([*FAKE_ENGINE, "--model-path", "m"]) as engine:
        engine_url = engine.line("http")
        serve = ["serve", "--state", str(state_dir), "--port", "0", "--upstream", engine_url]
        with RunningProcess(
            [sys.executable, "-c", FULL, str(state_dir / "journal"), *serve], {"GATEWAY_KEEP_ALIVE_S": "1"}
        ) as gateway:
            url = gateway.line("listening on").split()[-1]
            assert post(url, key) == 200
            gateway.signal(signal.SIGUSR1)
            assert post(url, key) == 503
            assert httpx.get(f"{url}/ready").status_code == 503
            assert "deepseek_gateway_journal_broken 1.0" in httpx.get(f"{url}/metrics").text
            gateway.signal(signal.SIGUSR2)
            deadline = time.monotonic() + 30
            while httpx.get(f"{url}/ready").status_code != 200:  # with no request: none comes to who is not ready
                assert time.monotonic() < deadline
            assert post(url, key) == 200
            gateway.signal()
            assert gateway.wait() == 0
        usage = httpx.get(f"{engine_url}/fake/truth").json()
    with closing(open_store(state_dir / "gateway.sqlite3", None)) as store:
        rows = store.ledger.rows()
        assert store.audit.verify()[1] is None
    assert len(rows) == 2
    assert sum(row.completion_tokens for row in rows) == usage["completion_tokens"] == 4


async def test_a_clock_that_is_set_back_or_forth_stops_no_observation(tmp_path: Path, store: Store) -> None:
    clock = [5000.0]
    with ThreadPoolExecutor(1) as executor:
        journal = Journal(tmp_path / "j")
        ledger = Ledger(journal, store.books, executor, wall=lambda: clock[0])
        await ledger.start()
        ledger.admit(Admission("r1", "key", "/v1/generate", "m", True, 5000.0))
        for step, tokens in ((0, 1), (-3600, 2), (0.5, 3), (7200, 4)):
            clock[0] += step
            ledger.observe("r1", 1, TokenCounts(3, tokens, 0))
        seen = [record["tokens"]["completion"] for record in journal.read() if record["kind"] == "observe"]
        await ledger.close()
    assert seen == [1, 2, 4]


async def test_a_key_that_is_looked_up_in_a_store_that_hangs_is_refused_in_time(
    state_dir: Path, own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek_gateway.auth.directory.LOOK_UP_S", 0.2)
    async with running_stack(state_dir, store_url=own_postgres.new_database()) as stack:
        unknown = stack.with_key()
        server = own_postgres.process
        assert server is not None
        children = await asyncio.to_thread(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text)
        sessions = [int(pid) for pid in children.split()]
        for pid in sessions:
            os.kill(pid, signal.SIGSTOP)
        try:
            reply = await unknown.post()
        finally:
            for pid in sessions:
                os.kill(pid, signal.SIGCONT)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        monkeypatch.undo()
        assert (await unknown.post()).status == 200
