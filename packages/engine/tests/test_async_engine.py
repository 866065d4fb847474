"""AsyncEngine against real core processes that run the fake model."""

import asyncio
import gc
import logging
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psutil
import pytest

from deepseek_engine.async_engine import AsyncEngine
from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineStartError,
    InvalidRequestError,
    QueueFullError,
)
from deepseek_engine.messages import Delta, Submit
from deepseek_engine.request_stream import RequestStream
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.fake_runner import expected_tokens

FAKE = "deepseek_engine.testing.fake_runner:build_fake_runner"
SLOW = "fake?step_s=0.01"
PROMPT = [5, 6, 7, 8, 9]


@asynccontextmanager
async def running(model: str = "fake", **settings: int) -> AsyncIterator[AsyncEngine]:
    engine = await AsyncEngine.start(EngineConfig(model=model, **settings), runner=FAKE)
    try:
        yield engine
    finally:
        await engine.shutdown()


def submit(request_id: str, prompt: list[int] = PROMPT, **params: object) -> Submit:
    return Submit(request_id, prompt, SamplingParams(**({"temperature": 0.0, "max_tokens": 8} | params)))


async def read(stream: RequestStream) -> list[Delta]:
    return [delta async for deltas in stream for delta in deltas]


def tokens(deltas: list[Delta], index: int = 0) -> list[int]:
    return [token_id for delta in deltas if delta.index == index for token_id in delta.token_ids]


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what it waits for is state in another process
            await asyncio.sleep(0.002)


def is_idle(engine: AsyncEngine) -> bool:
    stats = engine.stats
    return (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


async def test_a_stream_gives_every_token_and_ends_by_itself():
    async with running() as engine:
        assert (engine.info.vocab_size, engine.info.block_size) == (512, 16)
        deltas = await read(engine.submit(submit("a")))
        assert tokens(deltas) == expected_tokens(PROMPT, 8)
        assert [delta.finish_reason for delta in deltas] == [None] * 7 + ["length"]
        await until(lambda: is_idle(engine))


async def test_many_streams_at_once_each_get_their_own_tokens():
    async with running(max_num_seqs=16, num_kv_blocks=64) as engine:
        prompts = {str(number): [*range(20), number] for number in range(100)}
        streams = [engine.submit(submit(name, prompt, n=2, max_tokens=30)) for name, prompt in prompts.items()]
        results = await asyncio.gather(*map(read, streams))
        for deltas, prompt in zip(results, prompts.values(), strict=True):
            assert tokens(deltas, 0) == tokens(deltas, 1) == expected_tokens(prompt, 30)
        await until(lambda: is_idle(engine))


async def test_a_slow_reader_catches_up_with_everything_at_once():
    async with running() as engine:
        stream = engine.submit(submit("a", max_tokens=50))
        await until(lambda: engine.stats.num_steps == 50 and is_idle(engine))
        deltas = await anext(stream)
        assert len(deltas) == 50
        assert await read(stream) == []


async def test_cancelling_ends_the_stream_with_abort():
    async with running(SLOW) as engine:
        stream = engine.submit(submit("a", n=2, max_tokens=5000))
        first = await anext(stream)
        assert engine.cancel("a")
        rest = await read(stream)
        assert sorted(d.index for d in rest if d.finish_reason == "abort") == [0, 1]
        assert tokens(first + rest) == expected_tokens(PROMPT, len(tokens(first + rest)))
        assert not engine.cancel("a")
        assert is_idle(engine)


async def test_one_answer_can_be_cancelled_alone():
    async with running("fake?step_s=0.002") as engine:
        stream = engine.submit(submit("a", n=2, max_tokens=1000))  # two seconds to cancel one within
        await anext(stream)
        engine.cancel("a", 0)
        deltas = await read(stream)
        ends = {delta.index: delta.finish_reason for delta in deltas if delta.finish_reason}
        assert ends == {0: "abort", 1: "length"}


async def test_closing_a_stream_frees_its_blocks():
    async with running(SLOW) as engine:
        stream = engine.submit(submit("a", max_tokens=5000))
        await anext(stream)
        stream.close()
        assert await read(stream) == []
        await until(lambda: is_idle(engine))


async def test_a_request_cancelled_before_its_first_token_has_processed_nothing():
    async with running(SLOW, max_num_seqs=1) as engine:
        first = engine.submit(submit("first", max_tokens=5000))
        await anext(first)
        waiting = engine.submit(submit("waiting"))
        await until(lambda: engine.stats.num_waiting == 1)
        engine.cancel("waiting")
        (delta,) = await read(waiting)
        assert (delta.finish_reason, delta.num_prompt_tokens) == ("abort", 0)
        first.close()
        await until(lambda: is_idle(engine))


async def test_cancelling_right_after_submitting_ends_the_request():
    async with running() as engine:
        for number in range(20):
            stream = engine.submit(submit(str(number), max_tokens=5000))
            assert engine.cancel(str(number))
            assert (await read(stream))[-1].finish_reason == "abort"
        await until(lambda: is_idle(engine))


async def test_a_cancelled_prefill_frees_its_blocks():
    async with running("fake?step_s=0.1", max_num_batched_tokens=64) as engine:
        stream = engine.submit(submit("a", [1] * 4000))
        await until(lambda: engine.stats.num_running == 1)
        stream.close()
        await until(lambda: is_idle(engine))
        assert engine.stats.num_steps < 4000 / 64


async def test_a_dropped_stream_is_cancelled():
    async with running(SLOW) as engine:
        stream = engine.submit(submit("a", max_tokens=5000))
        await anext(stream)
        del stream
        gc.collect()
        await until(lambda: is_idle(engine))


async def test_a_reader_that_is_cancelled_leaves_the_stream_usable():
    async with running(SLOW) as engine:
        stream = engine.submit(submit("a", max_tokens=20))
        await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(stream)
        deltas = await read(stream)
        assert deltas[-1].finish_reason == "length"


async def test_leaving_the_with_block_cancels():
    async with running(SLOW) as engine:
        async with engine.submit(submit("a", max_tokens=5000)) as stream:
            await anext(stream)
        await until(lambda: is_idle(engine))


async def test_a_request_that_cannot_fit_is_refused_where_it_is_submitted():
    async with running(max_model_len=64) as engine:
        with pytest.raises(ContextLengthError, match="at most 56 prompt tokens fit"):
            engine.submit(submit("a", [1] * 60))
        with pytest.raises(InvalidRequestError, match="the vocabulary is 0 to 511"):
            engine.submit(submit("a", [512]))
        assert tokens(await read(engine.submit(submit("a")))) == expected_tokens(PROMPT, 8)


async def test_an_id_stays_in_use_until_the_core_has_ended_the_request():
    async with running(SLOW) as engine:
        stream = engine.submit(submit("a", max_tokens=5000))
        with pytest.raises(InvalidRequestError, match="'a' is in use"):
            engine.submit(submit("a"))
        await anext(stream)
        stream.close()
        with pytest.raises(InvalidRequestError, match="'a' is in use"):
            engine.submit(submit("a"))
        await until(lambda: is_idle(engine))
        assert tokens(await read(engine.submit(submit("a")))) == expected_tokens(PROMPT, 8)


async def test_requests_beyond_those_that_run_and_wait_are_refused():
    async with running(SLOW, max_num_seqs=2, max_waiting=3) as engine:
        streams = [engine.submit(submit(str(number))) for number in range(5)]
        with pytest.raises(QueueFullError, match="max_waiting=3"):
            engine.submit(submit("one too many"))
        for stream in streams:
            assert tokens(await read(stream)) == expected_tokens(PROMPT, 8)
        assert tokens(await read(engine.submit(submit("now")))) == expected_tokens(PROMPT, 8)


async def test_prompt_tokens_that_wait_are_bounded_but_one_prompt_alone_is_always_taken():
    async with running(SLOW, max_num_seqs=1, max_waiting_tokens=64) as engine:
        running_one = engine.submit(submit("long", [1] * 100, max_tokens=200))
        await anext(running_one)  # it has begun: its prompt waits no more
        first = engine.submit(submit("first", [1] * 40))
        with pytest.raises(QueueFullError, match="40 prompt tokens are waiting and this prompt has 25, max_waiting_to"):
            engine.submit(submit("too long", [1] * 25))
        second = engine.submit(submit("second", [1] * 24))
        for stream in (first, second):
            stream.close()
        running_one.close()
        await until(lambda: is_idle(engine))
        assert tokens(await read(engine.submit(submit("now", [1] * 64)))) == expected_tokens([1] * 64, 8)


async def test_a_deadline_ends_requests_that_run_and_requests_that_wait():
    async with running(SLOW, max_num_seqs=1) as engine:
        runs = engine.submit(submit("runs", max_tokens=5000, deadline_s=2.0))
        await anext(runs)
        waits = engine.submit(submit("waits", deadline_s=0.1))
        (last,) = await read(waits)
        assert (last.finish_reason, last.timed_out, last.num_prompt_tokens) == ("abort", True, 0)
        last = (await read(runs))[-1]
        assert (last.finish_reason, last.timed_out) == ("abort", True)
        await until(lambda: is_idle(engine))


async def test_a_request_that_fails_ends_alone_however_often_and_the_engine_goes_on():
    async with running("fake?fail_token=13") as engine:
        for number in range(3):
            (delta,) = await read(engine.submit(submit(f"bad-{number}", [13])))
            assert delta.finish_reason == "error"
            assert delta.error is not None
            assert "token 13 breaks this model" in delta.error
        assert tokens(await read(engine.submit(submit("good")))) == expected_tokens(PROMPT, 8)
        assert engine.is_alive


async def test_a_model_that_computes_nothing_any_more_ends_the_core(caplog):
    async with running("fake?die_token=13") as engine:
        assert tokens(await read(engine.submit(submit("good")))) == expected_tokens(PROMPT, 8)
        with pytest.raises(EngineDeadError, match="ended with status 1"):
            await read(engine.submit(submit("deadly", [13])))
        assert not engine.is_alive
        assert "the engine core ended with status 1" in caplog.text


async def test_a_killed_core_ends_every_stream_with_an_error_and_takes_no_more(caplog):
    async with running(SLOW, max_num_seqs=2) as engine:
        streams = [engine.submit(submit(str(number), max_tokens=5000)) for number in range(4)]
        await anext(streams[0])
        readers = [asyncio.create_task(read(stream)) for stream in streams]
        dead = asyncio.create_task(engine.wait_dead())
        os.kill(_core_of(os.getpid()).pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            results = await asyncio.gather(*readers, return_exceptions=True)
            await dead
        assert [type(result) for result in results] == [EngineDeadError] * 4
        assert "status -9" in str(results[0])
        assert not engine.is_alive
        assert not engine.cancel("0")
        with pytest.raises(EngineDeadError):
            engine.submit(submit("late"))


async def test_sigterm_ends_the_core_and_sigint_does_not(caplog):
    async with running() as engine:
        core = _core_of(os.getpid())
        core.send_signal(signal.SIGINT)
        assert tokens(await read(engine.submit(submit("a")))) == expected_tokens(PROMPT, 8)
        core.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await engine.wait_dead()


async def test_shutdown_ends_open_streams_and_the_process():
    async with running(SLOW) as engine:
        core = _core_of(os.getpid())
        reader = asyncio.create_task(read(engine.submit(submit("a", max_tokens=5000))))
        await until(lambda: engine.stats.num_steps > 0)
        await engine.shutdown()
        with pytest.raises(EngineDeadError, match="was shut down"):
            await reader
        assert not core.is_running()
        assert not engine.is_alive


async def test_shutdown_kills_a_core_that_does_not_react():
    async with running() as engine:
        core = _core_of(os.getpid())
        core.suspend()
        await engine.shutdown(timeout_s=0.1)
        assert not core.is_running()


async def test_an_idle_core_uses_no_cpu():
    async with running() as engine:
        await read(engine.submit(submit("a")))
        core = _core_of(os.getpid())
        before = core.cpu_times()
        await asyncio.sleep(0.3)  # the time that is measured, not a wait for something to happen
        after = core.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.1


async def test_a_model_that_does_not_load_is_a_start_error_with_its_reason():
    with pytest.raises(EngineStartError, match="model='nosuch': the fake runner runs only 'fake'"):
        await AsyncEngine.start(EngineConfig(model="nosuch"), runner=FAKE)
    assert _cores_of(os.getpid()) == []


async def test_a_core_that_dies_while_it_loads_is_a_start_error():
    with pytest.raises(EngineStartError, match="ended with status 7 before it was ready"):
        await AsyncEngine.start(EngineConfig(model="fake"), runner="this_is_no_runner_but_exits:build")


@pytest.fixture(autouse=True)
def module_that_exits(tmp_path, monkeypatch):
    (tmp_path / "this_is_no_runner_but_exits.py").write_text("import os; os._exit(7)")
    (tmp_path / "loads_forever.py").write_text("import time\ndef build(config): time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


async def test_giving_up_on_a_start_ends_the_core():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await AsyncEngine.start(EngineConfig(model="fake"), runner="loads_forever:build")
    assert _cores_of(os.getpid()) == []


@pytest.mark.parametrize("runner", [FAKE, "loads_forever:build"], ids=["serving", "loading"])
async def test_the_core_ends_when_its_parent_dies(runner):
    program = f"""
        import asyncio
        from deepseek_engine.async_engine import AsyncEngine
        from deepseek_engine.config import EngineConfig
        from deepseek_engine.messages import Submit
        from deepseek_engine.sampling_params import SamplingParams

        async def main():
            engine = await AsyncEngine.start(EngineConfig(model={SLOW!r}), runner={runner!r})
            stream = engine.submit(Submit("a", [1], SamplingParams(max_tokens=5000)))
            await anext(stream)
            print("streaming", flush=True)
            async for _ in stream: pass

        asyncio.run(main())
    """
    command = (sys.executable, "-c", textwrap.dedent(program))
    parent = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert parent.stdout is not None
        if runner == FAKE:
            assert await parent.stdout.readline() == b"streaming\n"
        await until(lambda: len(_cores_of(parent.pid)) == 1)
        core = _core_of(parent.pid)
    finally:
        parent.kill()
        await parent.wait()
    await until(lambda: not core.is_running() or core.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("level", [logging.ERROR, logging.CRITICAL])
async def test_the_core_logs_at_the_level_of_its_parent(capfd, caplog, level):
    caplog.set_level(level, "deepseek_engine")
    async with running("fake?fail_token=13") as engine:
        await read(engine.submit(submit("bad", [13])))
    errors = capfd.readouterr().err
    is_logged = level == logging.ERROR
    assert ("ERROR core[" in errors) is is_logged
    assert ("Traceback" in errors) is is_logged


def _cores_of(pid: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(pid).children()
        if child.status() != psutil.STATUS_ZOMBIE and "deepseek_engine.core_process" in child.cmdline()
    ]


def _core_of(pid: int) -> psutil.Process:
    (core,) = _cores_of(pid)
    return core
