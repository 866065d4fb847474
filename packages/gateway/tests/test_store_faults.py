"""The disk fills up, the clock jumps: nothing accepted is lost, and all heals by itself."""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx

from deepseek_gateway.ledger.journal import Journal
from deepseek_gateway.ledger.ledger import Ledger
from deepseek_gateway.ledger.records import Admission, TokenCounts
from deepseek_gateway.storage.store import Store, open_store
from deepseek_gateway.testing.processes import FAKE_ENGINE, RunningProcess, make_state

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


def post(url: str, key: str) -> int:
    body = {"prompt": "a b c", "fake": {"tokens": 2}}
    return httpx.post(f"{url}/generate", json=body, headers={"authorization": f"Bearer {key}"}).status_code


def test_a_full_disk_refuses_requests_and_heals_when_there_is_room(state_dir: Path) -> None:
    key = make_state(state_dir)
    with RunningProcess([*FAKE_ENGINE, "--model-path", "m"]) as engine:
        engine_url = engine.line("http")
        serve = ["serve", "--state", str(state_dir), "--port", "0", "--upstream", engine_url]
        with RunningProcess([sys.executable, "-c", FULL, str(state_dir / "journal"), *serve]) as gateway:
            url = gateway.line("listening on").split()[-1]
            assert post(url, key) == 200
            gateway.signal(signal.SIGUSR1)
            assert post(url, key) == 503
            assert httpx.get(f"{url}/ready").status_code == 503
            gateway.signal(signal.SIGUSR2)
            assert post(url, key) == 200
            assert httpx.get(f"{url}/ready").status_code == 200
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
