"""`serve` as a process: drain and stop."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from deepseek_gateway.storage.store import open_store
from deepseek_gateway.testing.processes import FAKE_ENGINE, GATEWAY, RunningProcess, gateway_command, make_state

GATED = {"prompt": "a b", "stream": True, "fake": {"tokens": 3, "gated": True}}


class Served:
    """A gateway process in front of a fake engine process."""

    def __init__(self, gateway: RunningProcess, engine_url: str, state: Path, key: str) -> None:
        self.gateway, self.engine_url, self.state = gateway, engine_url, state
        self.url = gateway.line("listening on").split()[-1]
        self.http = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=20)

    def allow(self, words: int) -> None:
        httpx.get(f"{self.engine_url}/fake/allow/{words}")

    def rows(self) -> list:
        with closing(open_store(self.state / "gateway.sqlite3", None)) as store:
            return store.ledger.rows()


@pytest.fixture
def served(state_dir: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    key = make_state(state_dir)
    env = getattr(request, "param", {})
    with RunningProcess(FAKE_ENGINE) as engine:
        engine_url = engine.line("http")
        arguments = ["serve", "--state", str(state_dir), "--port", "0", "--upstream", engine_url]
        with RunningProcess([*GATEWAY, *arguments], env) as gateway:
            running = Served(gateway, engine_url, state_dir, key)
            yield running
            running.http.close()


def test_sigterm_lets_streams_finish_and_refuses_new_requests(served: Served) -> None:
    served.allow(1)
    with served.http.stream("POST", "/generate", json=GATED) as answer:
        events = answer.iter_lines()
        assert "w1" in next(events)
        served.gateway.signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while (ready := served.http.get("/ready")).status_code == 200:
            assert time.monotonic() < deadline
        assert (ready.status_code, ready.json()["error"]["message"]) == (503, "the gateway stops")
        refused = served.http.post("/generate", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        served.allow(2)
        rest = [line for line in events if line]
    assert rest[-1] == "data: [DONE]"
    assert served.gateway.wait() == 0
    assert [(row.status, row.accuracy) for row in served.rows()] == [("finished", "exact")]


@pytest.mark.parametrize("served", [{"GATEWAY_DRAIN_TIMEOUT_S": "0.3"}], indirect=True)
def test_after_the_drain_limit_streams_end_with_an_error_event_and_are_billed(served: Served) -> None:
    served.allow(2)
    with served.http.stream("POST", "/generate", json=GATED) as answer:
        events = answer.iter_lines()
        assert "w1" in next(events)
        served.gateway.signal(signal.SIGTERM)
        rest = [line for line in events if line]
    assert rest[-2] == "event: error"
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert served.gateway.wait() == 0
    (row,) = served.rows()
    assert (row.status, row.end_reason, row.accuracy, row.completion_tokens) == ("failed", "shutdown", "exact", 2)


def is_ready(served: Served) -> bool:
    try:
        return served.http.get("/ready").status_code == 200
    except httpx.TransportError:  # the request met the closing of the connection that it went over
        return False


def test_a_second_signal_ends_it_at_once(served: Served) -> None:
    served.allow(1)
    failures: list[Exception] = []

    def ask() -> None:
        try:
            served.http.post("/generate", json=GATED)
        except httpx.TransportError as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    with served.http.stream("POST", "/generate", json=GATED) as answer:
        assert "w1" in next(answer.iter_lines())
        asking.start()
        served.gateway.signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while is_ready(served):
            assert time.monotonic() < deadline
        began = time.monotonic()
        served.gateway.signal(signal.SIGINT)
        assert served.gateway.wait() == 0
        assert time.monotonic() - began < 25
    asking.join()
    rows = served.rows()
    assert {row.status for row in rows} <= {"failed", "cancelled"}
    assert 1 in {row.completion_tokens for row in rows}  # settled before the journal was closed


def test_an_address_in_use_is_explained(served: Served, state_dir: Path, tmp_path: Path) -> None:
    make_state(tmp_path / "other")
    port = served.url.rpartition(":")[2]
    done = gateway_command("serve", "--state", tmp_path / "other", "--port", port, "--upstream", served.engine_url)
    assert (done.returncode, f"cannot listen on 127.0.0.1:{port}" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr
