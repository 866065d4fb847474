"""`up`: gateway and engine child, as processes. The engine is the fake one."""

import json
import shlex
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from deepseek_gateway.testing.processes import DEADLINE_S, FAKE_ENGINE, GATEWAY, RunningProcess, gateway_command

ENGINE = shlex.join(FAKE_ENGINE)


def up(state: Path, *arguments: str, engine: str = ENGINE) -> RunningProcess:
    return RunningProcess(
        [*GATEWAY, "up", "--state", str(state), "--port", "0", "--engine-command", engine, *arguments]
    )


def ready(running: RunningProcess) -> dict[str, str]:
    return json.loads(running.line("{"))


def ask(stack: dict[str, str], **body: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {stack['user_key']}"}
    return httpx.post(f"{stack['url']}/v1/generate", json={"prompt": "a b", **body}, headers=headers, timeout=20)


def family(running: RunningProcess) -> list[psutil.Process]:
    return psutil.Process(running.process.pid).children(recursive=True)


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE_S)
    return not alive


def engine_of(running: RunningProcess) -> psutil.Process:
    return next(process for process in family(running) if "deepseek_gateway.testing" in process.cmdline())


def test_up_with_json_prints_one_line_serves_and_ends_with_its_engine(state_dir: Path) -> None:
    with up(state_dir, "--json", "--model-path", "my-model", "--", "--start-delay-s", "0.2") as running:
        stack = ready(running)
        assert set(stack) == {"url", "admin_key", "user_key"}
        answer = ask(stack)
        assert (answer.status_code, answer.json()["model"]) == (200, "my-model")
        keys = httpx.get(f"{stack['url']}/admin/keys", headers={"authorization": f"Bearer {stack['admin_key']}"})
        assert keys.status_code == 200
        children = family(running)
        running.signal()
        assert running.wait() == 0
        assert running.lines == [json.dumps(stack)]
        assert all_gone(children)
        assert any(line.startswith("starting the engine: ") for line in running.errors)


def test_keys_are_printed_on_the_first_start_only(state_dir: Path) -> None:
    keys: list[str] = []
    for _ in range(2):
        with up(state_dir) as running:
            running.line("try: curl")
            keys += [line for line in running.lines if "dsk_" in line and "key:" in line]
            running.signal(signal.SIGINT)
            assert running.wait() == 0
    assert [line.split(":")[0] for line in keys] == ["admin key", "user key"]


def test_an_engine_that_dies_is_started_again_and_the_gateway_answers_503_meanwhile(state_dir: Path) -> None:
    with up(state_dir, "--json") as running:
        stack = ready(running)
        engine_of(running).kill()
        deadline = time.monotonic() + DEADLINE_S
        seen: list[int] = []
        while time.monotonic() < deadline:
            answer = ask(stack)
            seen.append(answer.status_code)
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
            if answer.status_code == 200 and len(set(seen)) > 1:
                break
            time.sleep(0.05)
        assert seen[-1] == 200
        assert set(seen) <= {200, 502, 503}
        assert 503 in seen
        assert "the engine is ready again" in running.error_line("ready again")
        running.signal()
        assert running.wait() == 0


def test_a_killed_gateway_takes_its_engine_along_and_the_next_start_copes(state_dir: Path) -> None:
    with up(state_dir, "--json") as running:
        stack = ready(running)
        assert ask(stack).status_code == 200
        children = family(running)
        assert len(children) == 2  # the guard and the engine
        running.signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        with up(state_dir, "--json") as again:
            assert ask(ready(again)).status_code == 200
            assert all_gone(children)
            again.signal()
            assert again.wait() == 0
    usage = json.loads(gateway_command("usage", "--state", state_dir, "--json").stdout)
    assert sum(total["requests"] for total in usage) == 2


def test_a_killed_guard_takes_the_engine_along(state_dir: Path) -> None:
    with up(state_dir, "--json") as running:
        ready(running)
        guard, engine = family(running)
        guard.kill()
        assert all_gone([engine])
        running.error_line("the engine is ready again")
        running.signal()
        assert running.wait() == 0


def test_an_engine_that_cannot_start_is_a_clear_error_with_its_last_lines(state_dir: Path) -> None:
    with up(state_dir, "--model-path", "/no/such/model", "--", "--die") as running:
        assert running.wait() == 1
    text = "\n".join(running.errors)
    assert "the engine ended with status 3" in text
    assert "cannot load /no/such/model" in text
    assert "Traceback" not in text


def test_an_engine_command_that_does_not_exist_is_a_clear_error(state_dir: Path) -> None:
    with up(state_dir, engine="/no/such/engine") as running:
        assert running.wait() == 1
    assert any("cannot run /no/such/engine" in line for line in running.errors)


def test_an_engine_that_takes_too_long_is_given_up(state_dir: Path) -> None:
    with up(state_dir, "--start-timeout", "0.3", "--", "--start-delay-s", "60") as running:
        assert running.wait() == 1
    assert any("not ready after 0.3 s" in line for line in running.errors)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_engine_starts_ends_both(state_dir: Path, number: int) -> None:
    with up(state_dir, "--json", "--", "--start-delay-s", "60") as running:
        running.error_line("starting the engine")
        while not (children := family(running)):
            time.sleep(0.01)
        running.signal(number)
        assert running.wait() == 0
        assert all_gone(children)
    assert running.lines == []


def test_a_state_directory_with_a_long_name_works(tmp_path: Path) -> None:
    state = tmp_path / ("long-" * 30)
    with up(state, "--json") as running:
        assert ask(ready(running)).status_code == 200
        running.signal()
        assert running.wait() == 0


def test_a_second_up_on_the_same_state_is_refused_before_it_starts_an_engine(state_dir: Path) -> None:
    with up(state_dir, "--json") as running:
        ready(running)
        with up(state_dir, "--json") as second:
            assert second.wait() == 1
        assert any("another gateway uses" in line for line in second.errors)
        assert not any("starting the engine" in line for line in second.errors)
        running.signal()
        assert running.wait() == 0
