"""`serve --workers`: one port, several processes, one end."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from deepseek_gateway.edge.siblings import merged_metrics
from deepseek_gateway.ledger.journal import Journal
from deepseek_gateway.ledger.ledger import Ledger
from deepseek_gateway.ledger.orphans import journal_path
from deepseek_gateway.ledger.records import Admission
from deepseek_gateway.stack.workers import hold_port
from deepseek_gateway.storage.store import Store, open_store
from deepseek_gateway.testing.processes import FAKE_ENGINE, GATEWAY, RunningProcess, gateway_command, make_state

LOCAL = {"GATEWAY_ALLOW_LOCAL_LIMITS": "true"}
SLOW = {"prompt": "a", "stream": True, "fake": {"tokens": 2, "gated": True}}


class Served:
    def __init__(self, gateway: RunningProcess, engine_url: str, state: Path, key: str) -> None:
        self.gateway, self.engine_url, self.state, self.key = gateway, engine_url, state, key
        self.url = gateway.line("listening on").split()[2]

    def ask(self, path: str = "/health") -> httpx.Response:
        """On a connection of its own, so that the kernel chooses a worker each time."""
        return httpx.get(f"{self.url}{path}", timeout=20)

    def generate(self) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.post(f"{self.url}/generate", json={"prompt": "a"}, headers=headers, timeout=20)

    def workers(self) -> set[int]:
        children = Path(f"/proc/{self.gateway.process.pid}/task/{self.gateway.process.pid}/children")
        return {int(pid) for pid in children.read_text().split()}


@pytest.fixture
def served(state_dir: Path) -> Iterator[Served]:
    key = make_state(state_dir)
    with RunningProcess(FAKE_ENGINE) as engine:
        engine_url = engine.line("http")
        arguments = ["serve", "--state", str(state_dir), "--port", "0", "--upstream", engine_url, "--workers", "2"]
        with RunningProcess([*GATEWAY, *arguments], LOCAL) as gateway:
            yield Served(gateway, engine_url, state_dir, key)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_workers_share_a_port_a_ledger_and_a_page_of_metrics_and_end_together(served: Served) -> None:
    assert len(served.workers()) == 2
    for _ in range(5):
        assert served.generate().status_code == 200
    # Whichever worker is asked answers for both.
    wait_for(lambda: len(lines_of(served.ask("/metrics").text, "deepseek_gateway_in_flight_requests")) == 2)
    text = served.ask("/metrics").text
    assert lines_of(text, "deepseek_gateway_in_flight_requests") == [
        'deepseek_gateway_in_flight_requests{worker="0"} 0.0',
        'deepseek_gateway_in_flight_requests{worker="1"} 0.0',
    ]
    assert text.count("# TYPE deepseek_gateway_in_flight_requests gauge") == 1
    # A stream that runs is finished, in the worker that has it.
    headers = {"authorization": f"Bearer {served.key}"}
    with httpx.stream("POST", f"{served.url}/generate", json=SLOW, headers=headers, timeout=20) as answer:
        served.gateway.signal(signal.SIGTERM)
        httpx.get(f"{served.engine_url}/fake/allow/2")
        assert list(answer.iter_lines())[-2:] == ["data: [DONE]", ""]
    assert served.gateway.wait() == 0
    with closing(open_store(served.state / "gateway.sqlite3", None)) as store:
        assert len(store.ledger.rows()) == 6


def lines_of(text: str, name: str) -> list[str]:
    return sorted(line for line in text.splitlines() if line.startswith((name + "{", name + " ")))


def test_a_worker_that_dies_is_started_again_and_all_go_with_their_parent(served: Served) -> None:
    before = served.workers()
    os.kill(min(before), signal.SIGKILL)
    wait_for(lambda: len(served.workers() - before) == 1 and len(served.workers()) == 2)
    assert served.ask().status_code == 200
    workers = served.workers()
    served.gateway.process.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_workers_without_shared_limits_are_refused(state_dir: Path) -> None:
    make_state(state_dir)
    done = gateway_command("serve", "--state", state_dir, "--upstream", "http://127.0.0.1:9", "--workers", "3")
    assert done.returncode == 1
    assert "GATEWAY_REDIS_URL" in done.stderr


def test_the_port_of_a_gateway_that_just_ended_can_be_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as before:
        address = before.getsockname()
        caller = socket.create_connection(address)
        before.accept()[0].close()  # the side that closes first keeps the connection, in TIME_WAIT
        assert caller.recv(1) == b""
        caller.close()
    hold_port(*address).close()


def test_check_tells_what_serve_would_refuse(state_dir: Path, tmp_path: Path) -> None:
    make_state(state_dir)
    flags = ("--state", state_dir, "--upstream", "http://127.0.0.1:9")
    (state_dir / "gateway.toml").write_text(
        f'workers = 2\ntls_certificate = "{tmp_path}/a"\ntls_key = "{tmp_path}/b"\n'
    )
    told = gateway_command("check", *flags).stdout
    assert f"fault: TLS: {tmp_path}/a and {tmp_path}/b cannot be used: No such file or directory" in told
    assert "fault: 2 workers would each count limits for itself" in told


def test_workers_that_cannot_start_end_their_parent(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ALLOW_LOCAL_LIMITS", "true")
    done = gateway_command(
        "serve", "--state", state_dir, "--upstream", "http://127.0.0.1:9", "--workers", "2", "--port", "0"
    )
    assert done.returncode == 1
    assert "migrate" in done.stderr


async def test_journals_of_workers_that_are_no_more_are_billed(tmp_path: Path, store: Store) -> None:
    with ThreadPoolExecutor(1) as executor:
        dead = Journal(journal_path(tmp_path, 3))
        dead.start_segment()
        Ledger(dead, store.books, executor).admit(Admission("req-1", "key", "/v1/generate", "m", False, 1.0))
        own = Journal(journal_path(tmp_path, 0))
        ledger = Ledger(own, store.books, executor)
        assert await ledger.adopt(tmp_path, 2) == []  # it lives: its journal is locked
        await dead.close()
        assert await ledger.adopt(tmp_path, 4) == []
        (row,) = await ledger.adopt(tmp_path, 2)
        assert (row.request_id, row.end_reason) == ("req-1", "gateway_crash")
        assert await ledger.adopt(tmp_path, 2) == []
        assert store.ledger.rows() == [row]
        await own.close()


async def test_metrics_of_a_worker_that_does_not_answer_are_left_out(tmp_path: Path) -> None:
    own = b'# HELP a x\n# TYPE a counter\na{b="c d"} 1.0\n# HELP e y\n# TYPE e gauge\ne 2.0\n'
    merged = await merged_metrics(own, 0, {0: tmp_path / "0", 1: tmp_path / "1"})
    assert merged == own.replace(b"a{", b'a{worker="0",').replace(b"e 2", b'e{worker="0"} 2')
