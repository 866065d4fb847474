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
from deepseek_gateway.testing.processes import FAKE_ENGINE, GATEWAY, RunningProcess, make_state

CRASHING = """
import os, signal, sys
from deepseek_gateway.ledger.journal import Journal
from deepseek_gateway.storage.books import Books

def die(): os.kill(os.getpid(), signal.SIGKILL)
when, kind = sys.argv[1].split()
append, keep = Journal.append, Books.keep

def crashing_append(self, record):
    if record["kind"] == kind and when == "before": die()
    ticket = append(self, record)
    if record["kind"] == kind and when == "after": die()
    return ticket

def crashing_keep(self, settled, refusals=()):
    if kind == "commit" and when == "within":
        self.ledger.database._writer.execute("BEGIN IMMEDIATE")
        self.ledger.database._writer.execute("INSERT INTO meta VALUES ('torn', 'x')")
        die()
    keep(self, settled, refusals)
    if kind == "commit" and when == "after": die()

Journal.append, Books.keep = crashing_append, crashing_keep
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


def rows_after_restart(state: Path, engine_url: str) -> list[LedgerRow]:
    """Start and stop a sound gateway; gives the ledger."""
    with RunningProcess([*GATEWAY, *serve_arguments(state, engine_url)]) as gateway:
        gateway.line("listening on")
        gateway.signal()
        assert gateway.wait() == 0
    with closing(open_store(state / "gateway.sqlite3", None)) as store:
        return store.ledger.rows()


def crash(state: Path, engine_url: str, point: str) -> None:
    """Serve one streamed request with a gateway that kills itself at a point."""
    key = make_state(state)
    command = [sys.executable, "-c", CRASHING, point, *serve_arguments(state, engine_url)]
    with RunningProcess(command) as gateway:
        url = gateway.line("listening on").split()[-1]
        body = {"prompt": "a b c", "stream": True, "fake": {"tokens": 5}}
        with suppress(httpx.TransportError):
            httpx.post(f"{url}/generate", json=body, headers={"authorization": f"Bearer {key}"})
        assert gateway.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("before admit", []),
        ("after admit", [("failed", "gateway_crash", "estimated", 0)]),
        ("after observe", [("failed", "gateway_crash", "estimated", 3)]),
        ("before settle", [("failed", "gateway_crash", "estimated", 3)]),
        ("after settle", [("finished", "stop", "exact", 3)]),
        ("within commit", [("finished", "stop", "exact", 3)]),
        ("after commit", [("finished", "stop", "exact", 3)]),
    ],
)
def test_a_kill_at_any_point_leaves_one_right_row(state_dir: Path, point: str, expected: list[tuple]) -> None:
    with engine() as engine_url:
        crash(state_dir, engine_url, point)
        rows = rows_after_restart(state_dir, engine_url)
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
