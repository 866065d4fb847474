"""Work that comes again and again outlives whatever one turn of it meets."""

import asyncio
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepseek_gateway.background import forever
from deepseek_gateway.edge.watch import QuietError, RequestWatch
from deepseek_gateway.limits.drafts import LimitDraft
from deepseek_gateway.stack import supervisor, workers
from deepseek_gateway.stack.engine import EngineFiles, EngineProcess
from deepseek_gateway.stack.supervisor import EngineSupervisor
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.stack import OPERATOR, Stack, running_stack


def broken(*_: object) -> None:
    raise ValueError("whatever it is")


async def test_a_turn_that_fails_is_told_and_followed_by_the_next(caplog: pytest.LogCaptureFixture) -> None:
    turns: list[int] = []

    async def work() -> None:
        turns.append(len(turns))
        if len(turns) == 2:
            broken()

    task = asyncio.create_task(forever(lambda: 0.0, work, "counting turns"))
    await until(lambda: len(turns) > 4)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert caplog.text.count("counting turns failed") == 1


async def test_silent_streams_get_signs_of_life_whatever_else_the_clock_meets(state_dir: Path, monkeypatch) -> None:
    async with running_stack(state_dir, keep_alive_s=0.5) as stack:
        monkeypatch.setattr(stack.gateway.replays, "expire", broken)
        await asyncio.sleep(0.2)  # more than one turn
        body = {"prompt": "a", "stream": True, "fake": {"queued": True}}
        async with stack.caller.open("/v1/generate", body) as answer:
            assert (await answer.content.readline()).startswith(b":")
            answer.close()
        await until(lambda: not stack.gateway.running)


async def test_rules_that_cannot_be_read_are_told_and_read_again(stack: Stack, monkeypatch) -> None:
    """Such as those of a newer gateway beside this one, whose kinds this one does not know."""
    monkeypatch.setattr("deepseek_gateway.limits.directory.POLL_S", 0.01)
    draft = LimitDraft(kind="requests_per_minute", limit=1, key_id=stack.caller.key_id)
    rule = await asyncio.to_thread(stack.gateway.limits.set, OPERATOR, draft)
    database = stack.gateway.store.database
    change = "UPDATE limit_rules SET kind = :kind"
    bump = "UPDATE limit_versions SET version = version + 1 WHERE name = 'rules'"
    await asyncio.to_thread(database.write, change, {"kind": "requests_per_fortnight"})
    await asyncio.to_thread(database.write, bump)
    await until(lambda: stack.gateway.rules.is_stale)
    assert "store" in str((await stack.caller.get("/ready")).json["faults"])
    await asyncio.to_thread(database.write, change, {"kind": rule.kind.value})
    await asyncio.to_thread(database.write, bump)
    await until(lambda: not stack.gateway.rules.is_stale)
    assert [(await stack.caller.post()).status for _ in range(2)] == [200, 429]


async def test_engines_are_looked_at_after_a_look_that_failed(stack: Stack, monkeypatch) -> None:
    prober = stack.gateway.pool._prober
    looks: list[bool] = []

    async def look(*_: object, **__: object) -> None:
        looks.append(True)
        broken()

    (upstream,) = stack.gateway.pool.upstreams
    upstream.breaker.missed(stack.gateway.pool.now())
    monkeypatch.setattr(prober, "look", look)
    await until(lambda: len(looks) >= 2)
    monkeypatch.undo()
    await until(lambda: stack.gateway.pool.is_up)


async def test_a_part_that_does_not_end_keeps_no_row_out_of_the_store(state_dir: Path, monkeypatch) -> None:
    async with running_stack(state_dir) as stack:
        await stack.caller.post()
        await until(lambda: not stack.gateway.running)
        monkeypatch.setattr(stack.gateway.last_used, "flush", broken)
        journal = state_dir / "journal"
    assert [path.stat().st_size for path in journal.glob("*.log")] == [0]


async def test_a_cancellation_from_elsewhere_is_not_taken_for_the_watchs_own() -> None:
    async def never() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    async def run() -> int:
        task = asyncio.current_task()
        assert task is not None
        watch = RequestWatch(never, 0.0, 0.0)
        try:
            asyncio.get_running_loop().call_soon(task.cancel)
            asyncio.get_running_loop().call_soon(watch.tick, float("inf"))
            await watch.reading(never())
        except asyncio.CancelledError:
            return task.cancelling()
        except QuietError:
            return -1
        finally:
            watch.close()
        return -2

    assert await asyncio.create_task(run()) == 1


async def test_an_engine_that_the_system_cannot_start_just_now_is_started_later(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.0)
    starts: list[str] = []

    class Engine(EngineProcess):
        async def start(self) -> None:
            starts.append("start")
            if len(starts) in {2, 3}:
                raise BlockingIOError("Resource temporarily unavailable")
            self._process: Any = await asyncio.create_subprocess_exec("true" if len(starts) == 1 else "cat", stdin=-1)

        async def until_ready(self, *_: Any) -> None:
            """At once."""

    files = EngineFiles.within(tmp_path)
    keeper = EngineSupervisor(lambda: Engine(["engine"], files), 5)
    await keeper.start(lambda _: None)
    await until(lambda: len(starts) == 4)
    await keeper.stop()


async def test_a_worker_that_was_being_started_when_all_were_told_to_end_ends_too(monkeypatch) -> None:
    monkeypatch.setattr(workers, "check_shared_limits", lambda _: None)
    settings: Any = SimpleNamespace(workers=1, host="127.0.0.1", port=0)
    group = workers.Workers(["serve"], settings)
    execute = asyncio.create_subprocess_exec

    async def slow(*_: object, **options: Any) -> asyncio.subprocess.Process:
        process = await execute("cat", **options)
        group._end(signal.SIGTERM)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    async with asyncio.timeout(30):
        status, announced = await group._live(0, asyncio.get_running_loop().create_future())
    assert (status, announced) == (-signal.SIGTERM, None)
    group._holder.close()


async def test_a_worker_that_the_system_cannot_start_is_a_worker_that_ended(monkeypatch) -> None:
    monkeypatch.setattr(workers, "check_shared_limits", lambda _: None)
    settings: Any = SimpleNamespace(workers=1, host="127.0.0.1", port=0)
    group = workers.Workers(["serve"], settings)

    async def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    assert await group._live(0, asyncio.get_running_loop().create_future()) == (1, None)
    group._holder.close()
