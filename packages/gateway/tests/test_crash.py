"""kill -9 at every step of a request's books: nothing lost, nothing billed twice."""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import aiohttp
import httpx
import pytest

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.storage.store import open_store
from deepseek_gateway.testing.postgres import PostgresServer
from deepseek_gateway.testing.processes import FAKE_ENGINE, GATEWAY, RunningProcess, make_state

CRASHING = """
import os, signal, sys
from deepseek_gateway.ledger import journal
from deepseek_gateway.ledger.journal import Journal
from deepseek_gateway.storage.books import Books
from deepseek_gateway.upstream.client import Answer, UpstreamClient

def die(): os.kill(os.getpid(), signal.SIGKILL)
when, kind = sys.argv[1].split()
append, keep, post, read, sync = Journal.append, Books.keep, UpstreamClient.post, Answer.read, journal._sync_files
num_reads = 0

def crashing_append(self, record):
    if record["kind"] == kind and when == "before": die()
    ticket = append(self, record)
    if record["kind"] == kind and when == "after": die()
    return ticket

def crashing_keep(self, settled, refusals=()):
    if kind == "commit" and when == "within":
        with self.ledger.database.transaction():
            keep(self, settled, refusals)
            die()
    keep(self, settled, refusals)
    if kind == "commit" and when == "after": die()

async def crashing_post(self, url, body, headers):
    answer = await post(self, url, body, headers)
    if kind == "send" and when == "after": die()
    return answer

async def crashing_read(self):
    global num_reads
    data = await read(self)
    num_reads += bool(data)
    if kind == "stream" and num_reads == 4: die()
    return data

def crashing_sync(*files):
    if kind == "sync" and when == "before": die()
    sync(*files)

Journal.append, Books.keep, journal._sync_files = crashing_append, crashing_keep, crashing_sync
UpstreamClient.post, Answer.read = crashing_post, crashing_read
from deepseek_gateway.cli import main
sys.exit(main(sys.argv[2:]))
"""


@contextmanager
def engine() -> Iterator[str]:
    with RunningProcess([*FAKE_ENGINE, "--model-path", "m"]) as running:
        yield running.line("http")


def serve_arguments(state: Path, engine_url: str) -> list[str]:
    return ["serve", "--state", str(state), "--port", "0", "--upstream", engine_url]


def truth_of(engine_url: str) -> tuple[int, int]:
    """The engine's own count, once nothing runs there any more."""
    deadline, last = time.monotonic() + 10, None
    while time.monotonic() < deadline:
        usage = httpx.get(f"{engine_url}/fake/truth").json()
        now = (usage["prompt_tokens"], usage["completion_tokens"])
        if now == last:
            return now
        last = now
        time.sleep(0.1)
    raise AssertionError("the engine does not come to rest")


def environment(store_url: str | None) -> dict[str, str]:
    return {} if store_url is None else {"GATEWAY_STORE_URL": store_url}


def rows_after_restart(state: Path, engine_url: str, store_url: str | None = None) -> list[LedgerRow]:
    """Start and stop a sound gateway; gives the ledger, whose every row has its life in a sound log."""
    with RunningProcess([*GATEWAY, *serve_arguments(state, engine_url)], environment(store_url)) as gateway:
        gateway.line("listening on")
        gateway.signal()
        assert gateway.wait() == 0
    with closing(open_store(state / "gateway.sqlite3", store_url)) as store:
        rows = store.ledger.rows()
        assert store.audit.verify()[1] is None
        assert store.lives.first_fault(store.audit.entries()) == (len(rows), None)
        assert all(store.lives.find(row.request_id) is not None for row in rows)
        return rows


def crash(state: Path, engine_url: str, point: str, store_url: str | None) -> None:
    """Serve one streamed request with a gateway that kills itself at a point."""
    key = make_state(state, store_url)
    command = [sys.executable, "-c", CRASHING, point, *serve_arguments(state, engine_url)]
    with RunningProcess(command, environment(store_url)) as gateway:
        url = gateway.line("listening on").split()[-1]
        body = {"prompt": "a b c", "stream": True, "fake": {"tokens": 5, "delay_s": 0.02}}
        with suppress(httpx.TransportError):
            httpx.post(f"{url}/generate", json=body, headers={"authorization": f"Bearer {key}"})
        assert gateway.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("before admit", []),
        ("before sync", [("failed", "gateway_crash", "estimated", 0)]),
        ("after admit", [("failed", "gateway_crash", "estimated", 0)]),
        ("after send", [("failed", "gateway_crash", "estimated", 0)]),
        ("within stream", [("failed", "gateway_crash", "estimated", 3)]),
        ("after observe", [("failed", "gateway_crash", "estimated", 3)]),
        ("before settle", [("failed", "gateway_crash", "estimated", 3)]),
        ("after settle", [("finished", "stop", "exact", 3)]),
        ("within commit", [("finished", "stop", "exact", 3)]),
        ("after commit", [("finished", "stop", "exact", 3)]),
    ],
)
def test_a_kill_at_any_point_leaves_one_right_row(state_dir: Path, point: str, expected: list[tuple]) -> None:
    check_crash(state_dir, None, point, expected)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("within stream", [("failed", "gateway_crash", "estimated", 3)]),
        ("within commit", [("finished", "stop", "exact", 3)]),
        ("after commit", [("finished", "stop", "exact", 3)]),
    ],
)
def test_so_it_is_on_postgresql(state_dir: Path, postgres: PostgresServer, point: str, expected: list[tuple]) -> None:
    """The journal is the same; what differs is the commit."""
    check_crash(state_dir, postgres.new_database(), point, expected)


def check_crash(state_dir: Path, store_url: str | None, point: str, expected: list[tuple]) -> None:
    with engine() as engine_url:
        crash(state_dir, engine_url, point, store_url)
        rows = rows_after_restart(state_dir, engine_url, store_url)
        assert [(row.status, row.end_reason, row.accuracy, row.prompt_tokens) for row in rows] == expected
        prompt, completion = truth_of(engine_url)
        billed = sum(row.completion_tokens for row in rows)
        assert billed <= completion
        if expected and expected[0][2] == "exact":
            assert (sum(row.prompt_tokens for row in rows), billed) == (prompt, completion) == (3, 5)


async def one_stream(session: aiohttp.ClientSession, url: str, dice: random.Random) -> str | None:
    """Ask for a stream; gives the request's id if all of it came."""
    body = {"prompt": "a b", "stream": True, "fake": {"tokens": dice.randrange(1, 60), "delay_s": 0.01}}
    try:
        async with session.post(f"{url}/generate", json=body) as answer:
            text = await answer.read()
            return answer.headers["x-request-id"] if text.endswith(b"data: [DONE]\n\n") else None
    except aiohttp.ClientError:
        return None


async def load(url: str, key: str, gateway: RunningProcess, dice: random.Random) -> list[str]:
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        asking = [asyncio.create_task(one_stream(session, url, dice)) for _ in range(80)]
        for finished in asyncio.as_completed(asking[:20]):  # a quarter at least, however slow the machine is
            await finished
            if sum(task.done() for task in asking) >= 20:
                break
        gateway.process.kill()
        return [name for name in await asyncio.gather(*asking) if name is not None]


def test_a_kill_under_load_loses_no_finished_request_and_bills_none_twice(state_dir: Path) -> None:
    key = make_state(state_dir)
    with engine() as engine_url:
        with RunningProcess([*GATEWAY, *serve_arguments(state_dir, engine_url)]) as gateway:
            url = gateway.line("listening on").split()[-1]
            complete = asyncio.run(load(url, key, gateway, random.Random(7)))
        rows = rows_after_restart(state_dir, engine_url)
        assert rows_after_restart(state_dir, engine_url) == rows
        prompt, completion = truth_of(engine_url)
    by_id = {row.request_id: row for row in rows}
    assert len(by_id) == len(rows)
    assert complete
    assert len(complete) < 80
    assert all(by_id[name].accuracy == "exact" and by_id[name].status == "finished" for name in complete)
    cut = [row for row in rows if row.status == "failed"]
    assert cut
    assert {row.accuracy for row in cut} == {"estimated"}
    assert sum(row.prompt_tokens for row in rows) <= prompt
    assert sum(row.completion_tokens for row in rows) <= completion
