"""The engine on a GpuRunner: overlapping steps, chunks, sampling; on the CPU in the interpreter."""

from pathlib import Path
from typing import Final

import msgspec
import pytest
import torch

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.gpu_inputs import NUM_BUFFERS, GpuInputs
from deepseek_engine.gpu_runner import graph_sizes
from deepseek_engine.messages import Submit
from deepseek_engine.model_runner import build_cpu_runner
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.fake_bitsandbytes import install_fake_bitsandbytes
from deepseek_engine.testing.gpu import DEVICE, gpu_runner

MAX_MODEL_LEN: Final = 64
PROMPTS: Final = ([5, 9, 200, 31, 7, 77, 12, 3, 90], [42], [8, 8, 1])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    shape = TinyModel(num_hidden_layers=1, num_local_experts=4, intermediate_size=32)
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), shape)
    return EngineConfig(
        model=str(folder), dtype="float32", num_kv_blocks=16, max_model_len=MAX_MODEL_LEN, max_num_seqs=4,
        max_num_batched_tokens=8,
    )  # fmt: skip


def answers(engine: Engine, params: list[SamplingParams]) -> list[list[int]]:
    """Tokens of each prompt's answer, and how likely the prompt was found where that was asked."""
    found: dict[str, list[int]] = {}
    for index, (prompt, each) in enumerate(zip(PROMPTS, params, strict=True)):
        engine.add_request(Submit(str(index), list(prompt), each))
        found[str(index)] = []
    while engine.has_work:
        for delta in engine.step().deltas:
            found[delta.request_id] += [*delta.token_ids]
    return list(found.values())


def test_answers_are_those_of_the_cpu_runner(config: EngineConfig) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    drawn = SamplingParams(temperature=0.8, top_k=20, seed=11, max_tokens=3, ignore_eos=True)
    penalised = SamplingParams(temperature=0.0, repetition_penalty=1.3, max_tokens=3, ignore_eos=True)
    params = [greedy, drawn, penalised]
    expected = answers(Engine(config, build_cpu_runner(config)), params)
    engine = Engine(config, gpu_runner(config))
    assert answers(engine, params) == expected
    assert engine.step().stats.num_overlapped_steps > 0


@pytest.mark.parametrize("is_installed", [False] + (DEVICE.type == "cuda") * [True])
def test_bitsandbytes_serves_where_the_settings_say_so(
    is_installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_installed:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra that is not installed here")
    fake = None if is_installed else install_fake_bitsandbytes(monkeypatch)
    folder = write_tiny_checkpoint(tmp_path, TinyModel(num_hidden_layers=1, vocab_size=260))
    settings = EngineConfig(
        model=str(folder), dtype="bfloat16", quantization="int8", num_kv_blocks=16, max_model_len=MAX_MODEL_LEN,
        max_num_seqs=4, max_num_batched_tokens=8,
    )  # fmt: skip
    for backend in ("auto", "triton", "bitsandbytes"):
        runner = gpu_runner(msgspec.structs.replace(settings, linear_backend=backend))
        served = runner.info.kernels
        assert ("bitsandbytes" in served["few rows"]) == (backend == "bitsandbytes")
        assert ("bitsandbytes" in served["many rows"]) == (backend == "bitsandbytes")
    if fake is not None and DEVICE.type == "cuda":  # on a CPU nothing is computed at the start
        assert {1, 4, 8} <= {num_tokens for num_tokens, _, _ in fake.products}


def test_graph_sizes_cover_every_batch_closely() -> None:
    for max_rows in (1, 3, 8, 32, 100, 256, 1000):
        sizes = graph_sizes(max_rows)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == max_rows
        for rows in range(1, max_rows + 1):
            padded = next(size for size in sizes if size >= rows)
            assert padded - rows <= max(rows, 8) / 2 or padded - rows < 32


def test_a_closed_runner_holds_no_memory_of_the_model(config: EngineConfig) -> None:
    runner = gpu_runner(config)
    decoder = runner._decoder
    runner.close()
    runner.close()
    assert decoder.embedding.numel() == 0
    assert not decoder._layers
    assert runner.info.vocab_size > 0


class Copy:
    """A copy to the device that is done once somebody waits for it."""

    def __init__(self) -> None:
        self.is_done = False

    def synchronize(self) -> None:
        self.is_done = True


def test_what_the_device_may_still_read_is_not_written_over() -> None:
    inputs = GpuInputs(max_singles=4, max_blocks=4, block_size=16, device=torch.device("cpu"))
    inputs.reserve_chunks(32)
    copies = [Copy() for _ in range(NUM_BUFFERS)]
    inputs._copied = list(copies)
    prompt = Sequence("p", 0, [1, 2, 3], SamplingParams(), 0)
    prompt.block_table = [0]
    for count in range(1, NUM_BUFFERS + 1):  # chunks of prompts: nothing is sampled that would be waited for
        inputs.prepare_mixed([ScheduledSequence(prompt, 2)], 0, 32, None)
        assert sum(copy.is_done for copy in copies) == count


def test_graphs_are_captured_over_zeros() -> None:
    inputs = GpuInputs(max_singles=4, max_blocks=4, block_size=16, device=torch.device("cpu"))
    prompt = Sequence("p", 0, [7, 2, 3], SamplingParams(), 0)
    prompt.block_table = [3]
    rows = inputs.prepare([ScheduledSequence(prompt, 1)], 4, None)
    assert rows.singles is not None
    assert rows.singles.token_ids[0] == 7
    inputs.clear()
    for size in (1, 2, 4):
        views = inputs.singles(size)
        assert not any(view.any() for view in (views.token_ids, views.sources, views.slots, views.block_tables))
