"""Cores that hang, in every way that one can: what is written down, what the other process knows, and how it ends."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress

import psutil
import pytest

from deepseek_engine.async_engine import AsyncEngine
from deepseek_engine.config import EngineConfig
from deepseek_engine.core_watch import BEATS_MISSED, CoreWatch
from deepseek_engine.errors import EngineDeadError, InvalidRequestError
from deepseek_engine.messages import Heartbeat, StepTotals, Submit
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.fake_runner import expected_tokens
from deepseek_engine.watchdog import LOST_STATUS, STUCK_STATUS, StuckStep

FAKE = "deepseek_engine.testing.fake_runner:build_fake_runner"
HANG, FREEZE, LOSE = 13, 14, 15
FAULTS = f"fake?hang_token={HANG}&freeze_token={FREEZE}&lose_token={LOSE}"
PROMPT = [5, 6, 7]


@asynccontextmanager
async def running(model=FAULTS, **settings):
    engine = await AsyncEngine.start(EngineConfig(model=model, **settings), runner=FAKE)
    try:
        yield engine
    finally:
        await engine.shutdown(timeout_s=0.5)


def submit(name, prompt):
    return Submit(name, prompt, SamplingParams(temperature=0.0, max_tokens=4))


async def read(stream):
    return [token for deltas in [batch async for batch in stream] for delta in deltas for token in delta.token_ids]


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what it waits for is state in another process
            await asyncio.sleep(0.005)


def core_of(engine):
    return psutil.Process(engine._process.pid)


async def test_a_step_that_hangs_is_written_down_and_ends_the_core(capfd, caplog):
    async with running(step_timeout_s=0.2, step_exit_s=1.0, heartbeat_s=0.05) as engine:
        assert await read(engine.submit(submit("good", PROMPT))) == expected_tokens(PROMPT, 4)
        stream = engine.submit(submit("the-stuck-one", [1, 2, HANG]))
        with pytest.raises(EngineDeadError, match=f"ended with status {STUCK_STATUS}"):
            await read(stream)
        assert engine.vitals.heartbeat.num_dumps >= 1
        assert "a step of the engine has not ended for" in caplog.text
    written = capfd.readouterr().err
    assert "state of the engine core: a step has not ended" in written
    assert "id=the-stuck-one index=0 tokens=3 computed=0 new=3 drafts=0 blocks=1" in written
    assert "kv blocks: free=1023 total=1024" in written
    assert "step before: kind=decode" in written
    for frame in ("fake_runner.py", "in forward", "Thread 0x", "in _read_forever"):
        assert frame in written
    assert str(HANG) not in written.partition("id=the-stuck-one")[2].partition("\n")[0].partition("computed")[0]


async def test_a_launched_step_that_hangs_is_written_down_as_the_one_that_is_waited_for(capfd):
    async with running(f"{FAULTS}&overlap=1", step_timeout_s=0.2, step_exit_s=1.0, heartbeat_s=0.05) as engine:
        assert await read(engine.submit(submit("good", PROMPT))) == expected_tokens(PROMPT, 4)
        assert engine.stats.num_overlapped_steps == 3
        with pytest.raises(EngineDeadError, match=f"ended with status {STUCK_STATUS}"):
            await read(engine.submit(submit("the-stuck-one", [1, 2, HANG])))
    written = capfd.readouterr().err
    assert "phase=wait" in written
    assert "id=the-stuck-one index=0" in written


async def test_a_core_that_keeps_the_interpreters_lock_is_written_down_and_ended_from_outside(capfd, caplog):
    async with running(step_timeout_s=0.2, step_exit_s=0.5, heartbeat_s=0.05) as engine:
        with pytest.raises(EngineDeadError, match="ended with status -9"):
            await read(engine.submit(submit("frozen", [FREEZE])))
        assert "the engine core has not been heard of for" in caplog.text
    written = capfd.readouterr().err
    assert "Timeout (0:00:00" in written
    assert "in _suffer" in written


async def test_a_core_whose_runner_has_lost_a_rank_ends_between_steps_too(capfd, caplog):
    async with running(heartbeat_s=0.05) as engine:
        stream = engine.submit(submit("last", [LOSE]))
        with suppress(EngineDeadError):
            await read(stream)
        async with asyncio.timeout(30):
            await engine.wait_dead()
    assert f"the core ends itself with status {LOST_STATUS}: rank 1 of 2 was ended by" in capfd.readouterr().err
    assert f"ended with status {LOST_STATUS}" in caplog.text


async def test_a_signal_has_the_state_written_and_ends_nothing(capfd):
    async with running(heartbeat_s=0.1) as engine:
        engine.dump_state()
        await until(lambda: engine.vitals.heartbeat.num_dumps == 1)
        assert await read(engine.submit(submit("good", PROMPT))) == expected_tokens(PROMPT, 4)
    written = capfd.readouterr().err
    assert "state of the engine core: asked for by a signal" in written
    assert "phase=idle" in written
    assert "core_process.py" in written


async def test_a_signal_is_answered_in_the_middle_of_a_step_that_hangs(capfd):
    async with running(heartbeat_s=0.1) as engine:
        stream = engine.submit(submit("stuck", [HANG]))
        await until(lambda: engine.vitals.heartbeat.step_s > 0)
        os.kill(engine._process.pid, signal.SIGUSR1)
        await until(lambda: engine.vitals.heartbeat.num_dumps == 1)
        stream.close()
    written = capfd.readouterr().err
    assert "phase=forward" in written
    assert "id=stuck" in written


async def test_a_core_that_is_stopped_is_missed_and_taken_back(caplog):
    caplog.set_level("WARNING")
    async with running(heartbeat_s=0.05) as engine:
        await until(lambda: engine.vitals.heartbeat.rss_bytes > 0 and engine.vitals.trouble is None)
        core_of(engine).suspend()
        await until(lambda: engine.vitals.trouble is not None)
        assert "the engine core has not been heard of for" in engine.vitals.trouble
        assert engine.vitals.silence_s >= BEATS_MISSED * 0.05
        core_of(engine).resume()
        await until(lambda: engine.vitals.trouble is None)
        assert await read(engine.submit(submit("good", PROMPT))) == expected_tokens(PROMPT, 4)
        await until(lambda: "the engine core is back" in caplog.text)
    # Once a silence; a slow machine may have made another.
    assert 0 <= caplog.text.count("has not been heard of") - caplog.text.count("the engine core is back") <= 1


async def test_heartbeats_carry_what_steps_have_cost():
    async with running(heartbeat_s=0.05) as engine:
        await read(engine.submit(submit("good", PROMPT)))
        kinds = lambda: engine.vitals.heartbeat.steps.kinds  # noqa: E731
        await until(lambda: "decode" in kinds() and sum(kinds()["decode"].num_steps_in) == 3)
        steps = engine.vitals.heartbeat.steps
        assert sum(steps.kinds["prefill"].num_steps_in) == 1
        assert (steps.kinds["prefill"].num_sequences, steps.kinds["prefill"].num_tokens) == (1, 3)
        assert steps.kinds["decode"].num_tokens == 3
        idle = {phase for phase, seconds in steps.phase_seconds.items() if not seconds}
        assert idle == {"draft", "wait"}, "nothing is guessed, and no step launched"
        assert set(steps.phase_seconds) - idle == {"schedule", "forward", "sample", "emit", "send"}
        assert engine.vitals.heartbeat.cpu_s > 0


def test_a_step_is_told_once_and_ended_at_its_second_limit():
    step = StuckStep(timeout_s=10, exit_s=20, beat_s=1)
    verdicts = [step.observe(7, 1.0) for _ in range(21)]
    assert [second for second, verdict in enumerate(verdicts) if verdict == "dump"] == [10]
    assert verdicts.index("exit") == 20


def test_a_new_step_and_a_new_part_of_one_begin_at_zero():
    step = StuckStep(timeout_s=3, exit_s=5, beat_s=1)
    assert [step.observe(turn, 1.0) for turn in (1, 1, 1, 2, 2, 2, None, 2, 2, 2)] == [None] * 10


def test_time_in_which_the_process_was_stopped_is_no_long_step_and_no_silence():
    step = StuckStep(timeout_s=10, exit_s=20, beat_s=1)
    assert [step.observe(1, elapsed) for elapsed in (1.0, 1.0, 3600.0, 1.0)] == [None] * 4
    watch = CoreWatch(heartbeat_s=1, step_timeout_s=60, step_exit_s=600)
    watch.beat(3600.0)
    assert watch.vitals.trouble is None
    assert not watch.is_lost


def test_a_core_is_lost_only_after_longer_than_any_step_may_last():
    watch = CoreWatch(heartbeat_s=1, step_timeout_s=10, step_exit_s=20)
    for _ in range(24):
        watch.beat(1.0)
    assert watch.vitals.trouble == "the engine core has not been heard of for 24.0 s"
    assert not watch.is_lost
    watch.beat(1.0)
    assert watch.is_lost
    watch.hear(Heartbeat(step_s=12.0, steps=StepTotals({}, {})))
    assert not watch.is_lost
    assert watch.vitals.trouble == "a step of the engine has not ended for 12.0 s, step_timeout_s=10"


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"step_timeout_s": 0.0}, "step_timeout_s"),
        ({"step_exit_s": 1e9}, "step_exit_s"),
        ({"heartbeat_s": -1.0}, "heartbeat_s"),
        ({"step_timeout_s": 30.0, "step_exit_s": 20.0}, "step_exit_s"),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(settings, param):
    with pytest.raises(InvalidRequestError) as caught:
        EngineConfig(model="fake", **settings)
    assert caught.value.param == param
