"""Ranks as processes: what `LLM` and the server answer with them, and how everything ends when one of them does."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.async_engine import AsyncEngine
from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import EngineDeadError, ModelLoadError
from deepseek_engine.messages import Submit
from deepseek_engine.parallel.messages import Join
from deepseek_engine.parallel.processes import RankProcesses
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.watchdog import STUCK_STATUS

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": [(7 * i + j * j) % 256 for j in range(5 + 15 * i)]} for i in range(6)]
SETTINGS = {
    "dtype": "float32",
    "max_num_seqs": 4,
    "max_num_batched_tokens": 33,
    "num_kv_blocks": 40,
    "preempt_every_steps": 7,
    "num_threads": 2,
}
"""Prompts are computed in chunks, and what is computed is now and then dropped and computed again."""
RANK = "deepseek_engine.parallel.rank_process"
END_S = 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = TinyModel(num_local_experts=16, vocab_size=260)
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("moe"), model))


@pytest.fixture(scope="module")
def alone(checkpoint: str) -> LLM:
    return LLM(checkpoint, **SETTINGS)


@pytest.fixture(scope="module")
def ranks(checkpoint: str) -> Iterator[LLM]:
    with LLM(checkpoint, tensor_parallel_size=2, **SETTINGS) as llm:
        yield llm


def ranks_of(pid: int) -> list[psutil.Process]:
    return [process for process in psutil.Process(pid).children(recursive=True) if RANK in process.cmdline()]


def assert_all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=END_S)
    assert not alive


def answers(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


def test_greedy_tokens_are_those_of_one_rank_in_chunks_batches_and_after_preemption(alone: LLM, ranks: LLM) -> None:
    assert answers(ranks) == answers(alone)
    assert ranks.engine.step().stats.num_preemptions > 0


def test_what_the_prefix_cache_holds_is_used_by_every_rank(alone: LLM, ranks: LLM) -> None:
    prompt = {"prompt_token_ids": list(range(100, 180))}
    first, second = ranks.generate(prompt, GREEDY)[0], ranks.generate(prompt, GREEDY)[0]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 64)
    expected = alone.generate(prompt, GREEDY)[0].outputs[0].token_ids
    assert first.outputs[0].token_ids == second.outputs[0].token_ids == expected


def test_prompts_are_scored_and_embedded_as_by_one_rank(alone: LLM, ranks: LLM) -> None:
    for one, two in zip(alone.score(PROMPTS, prompt_logprobs=2), ranks.score(PROMPTS, prompt_logprobs=2), strict=True):
        expected = [entry.logprob for entry in one.prompt_logprobs if entry is not None]
        assert [entry.logprob for entry in two.prompt_logprobs if entry is not None] == pytest.approx(
            expected, abs=1e-4
        )
    for one, two in zip(alone.embed(PROMPTS), ranks.embed(PROMPTS), strict=True):
        assert list(two.embedding) == pytest.approx(list(one.embedding), abs=1e-5)


def test_bytes_are_those_of_all_ranks(alone: LLM, ranks: LLM) -> None:
    assert ranks.engine.info.kv_cache_bytes == alone.engine.info.kv_cache_bytes
    replicated = (260 + 5 + 2 * 16) * 64 * 4  # the embedding, norms and routers
    assert ranks.engine.info.weight_bytes == alone.engine.info.weight_bytes + replicated


def test_a_killed_rank_ends_the_llm_with_an_error_that_says_so(ranks: LLM) -> None:
    # The last test with these ranks.
    [rank] = ranks_of(os.getpid())
    rank.kill()
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="rank 1 of 2 was ended by signal 9"):
            ranks.generate(PROMPTS[0], GREEDY)


def test_a_process_that_ends_at_once_is_said_to_have() -> None:
    processes = RankProcesses(3, module="json.tool")  # it has no option --fd
    with pytest.raises(EngineDeadError, match="rank 1 of 3 ended with status 2"):
        processes.receive(1)
    processes.close()


def test_what_keeps_a_rank_from_loading_is_told_by_rank_0() -> None:
    processes = RankProcesses(2)
    processes.send(1, Join(EngineConfig(model="/absent/model", tensor_parallel_size=2), 1, 1))
    with pytest.raises(ModelLoadError, match=r"rank 1 of 2: .*no such file or folder"):
        processes.receive(1)
    processes.close()


async def test_a_rank_that_hangs_ends_the_core_and_is_ended(checkpoint: str, capfd: pytest.CaptureFixture[str]) -> None:
    limits = {"step_timeout_s": 0.5, "step_exit_s": 1.0, "heartbeat_s": 0.1}
    engine = await AsyncEngine.start(EngineConfig(model=checkpoint, tensor_parallel_size=2, **limits, **SETTINGS))
    [rank] = ranks_of(os.getpid())
    rank.suspend()
    with pytest.raises(EngineDeadError, match=f"ended with status {STUCK_STATUS}"):
        async for _ in engine.submit(Submit("stuck", [1, 2, 3], GREEDY)):
            pass
    assert_all_end([rank])
    await engine.shutdown()
    assert "state of the engine core: a step has not ended" in capfd.readouterr().err


async def test_no_rank_outlives_a_core_that_is_killed(checkpoint: str) -> None:
    engine = await AsyncEngine.start(EngineConfig(model=checkpoint, tensor_parallel_size=2, **SETTINGS))
    [rank] = ranks_of(os.getpid())
    rank.parent().kill()
    assert_all_end([rank])
    async with asyncio.timeout(END_S):
        await engine.wait_dead()
    await engine.shutdown()


def test_a_server_of_two_ranks_answers_and_stops_without_leaving_a_process(checkpoint: str, tmp_path: Path) -> None:
    socket_path, log = tmp_path / "engine.sock", tmp_path / "server.log"
    command = [
        *(sys.executable, "-m", "deepseek_engine.server", "--model-path", checkpoint, "--uds", str(socket_path)),
        *("--tensor-parallel-size", "2", "--dtype", "float32", "--threads", "2", "--max-model-len", "256"),
    ]
    with log.open("wb") as output, subprocess.Popen(command, stderr=output, stdout=output) as server:
        try:
            until_ready(server, log)
            started = psutil.Process(server.pid).children(recursive=True)
            assert len(ranks_of(server.pid)) == 1
            transport = httpx.HTTPTransport(uds=str(socket_path))
            with httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
                body = {"prompt": "Hello", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
                response = client.post("/v1/generate", json=body)
            assert response.status_code == 200
            assert response.json()["usage"]["completion_tokens"] == 5
            server.send_signal(signal.SIGTERM)
            assert server.wait(END_S) == 0
            assert_all_end(started)
        finally:
            server.kill()
    assert "Traceback" not in log.read_text()


def until_ready(server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while "ready on" not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
