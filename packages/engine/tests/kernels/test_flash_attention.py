"""Attention through flash-attn against our twins: the package where it is installed, else a stand-in for it.

Natively: once the package is built, as docs/engine/gpu.md says, the same file runs on a GPU.
"""

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.gpu_build import GpuPlan, build_gpu_runner, put_on_device
from deepseek_engine.gpu_runner import GpuRunner
from deepseek_engine.kernels.flash_attention import flash_decode, flash_prefill, plan_flash_chunks
from deepseek_engine.kernels.flash_library import FlashLibrary, load_flash_attention
from deepseek_engine.kernels.reference import decode_attention as decode_reference
from deepseek_engine.kernels.reference import prefill_attention as prefill_reference
from deepseek_engine.messages import Submit
from deepseek_engine.model_runner import open_checkpoint
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence, SequenceStatus
from deepseek_engine.testing import flash_attn_stand_in
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.flash_attn_stand_in import stand_in
from deepseek_engine.testing.paged_attention import DEVICE, IS_GPU, TOLERANCES, Draw, Heads, error_of
from deepseek_engine.weights import load_weights

IS_INSTALLED: Final = IS_GPU and importlib.util.find_spec("flash_attn") is not None
BLOCK_SIZE: Final = 256
DTYPE: Final = torch.bfloat16
SHAPES: Final = [Heads(16, 8, 128), Heads(9, 3, 64), Heads(4, 4, 64)]
CONTEXTS: Final = [1, 300, 0, 256, 700, 257, 0]
CHUNKS: Final = [(200, 200), (9, 265), (0, 0), (130, 513), (2, 2)]
MAX_MODEL_LEN: Final = 512
PROMPT, CHUNK = (262, 250) if IS_GPU else (12, 9)
"""Into a second page where there is time for it: not in the interpreter, which runs all but the attention."""


@pytest.fixture(scope="module")
def library() -> Iterator[FlashLibrary]:
    """The package, or else the stand-in, which is there for the whole file."""
    with nullcontext() if IS_INSTALLED else stand_in():
        yield load_flash_attention()


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("block_size", [256, 512])
def test_single_rows_attend_to_their_contexts(library: FlashLibrary, heads: Heads, block_size: int) -> None:
    draw = Draw(31, heads, DTYPE)
    kv, tables = draw.paged(CONTEXTS, block_size, is_int8=False)
    q, contexts, scale = draw.normal(len(CONTEXTS), heads.queries, heads.dim), ints(CONTEXTS), heads.dim**-0.5
    expected = decode_reference.decode_attention(q.flatten(1), kv, tables, contexts, scale=scale, cos_sin=None)
    actual = flash_decode(library, q, kv, tables, contexts, scale=scale).flatten(1)
    assert error_of(actual, expected) < TOLERANCES[DTYPE]
    assert not actual[contexts == 0].any(), "padding comes out as zeros"


@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("num_padding", [None, 0, 43])
def test_chunks_attend_to_what_they_may_see(library: FlashLibrary, heads: Heads, num_padding: int | None) -> None:
    draw = Draw(32, heads, DTYPE)
    kv, tables = draw.paged([context for _, context in CHUNKS], BLOCK_SIZE, is_int8=False)
    begins = [0, *accumulate(new for new, _ in CHUNKS)]
    num_rows = begins[-1] + (num_padding or 0)
    q, scale = draw.normal(num_rows, heads.queries, heads.dim), heads.dim**-0.5
    cu_seqlens, contexts = ints(begins), ints([context for _, context in CHUNKS])
    expected = prefill_reference.prefill_attention(q, kv, tables, cu_seqlens, contexts, None, scale=scale)
    longest = max(new for new, _ in CHUNKS)
    chunks = plan_flash_chunks(cu_seqlens, contexts, tables, longest, is_padded=num_padding is not None)
    actual = flash_prefill(library, q, kv, chunks, scale=scale)
    assert error_of(actual, expected) < TOLERANCES[DTYPE]
    assert not actual[begins[-1] :].any(), "padding comes out as zeros"


@pytest.mark.skipif(not IS_INSTALLED, reason="compares with the package")
def test_the_stand_in_takes_what_the_package_takes(library: FlashLibrary) -> None:
    ours = (flash_attn_stand_in.flash_attn_with_kvcache, flash_attn_stand_in.flash_attn_varlen_func)
    for stand_ins, packages in zip(ours, (library.with_kvcache, library.varlen), strict=True):
        defaults = [
            [(each.name, each.default) for each in inspect.signature(function).parameters.values()]
            for function in (stand_ins, packages)
        ]
        assert defaults[0] == defaults[1]


@pytest.mark.skipif(not IS_INSTALLED, reason="graphs take a GPU and the package")
def test_a_graph_reads_lengths_and_tables_when_it_is_replayed(library: FlashLibrary) -> None:
    heads = SHAPES[0]
    draw = Draw(33, heads, DTYPE)
    kv, tables = draw.paged([2000, 700, 1], BLOCK_SIZE, is_int8=False)
    q, scale = draw.normal(3, heads.queries, heads.dim), heads.dim**-0.5
    contexts, cu_seqlens, new = ints([1, 1, 1]), ints([0, 1, 2, 3]), draw.normal(40, heads.queries, heads.dim)
    static = tables.clamp_min(0)

    def launch() -> tuple[Tensor, Tensor]:
        chunks = plan_flash_chunks(cu_seqlens, contexts, static, 40, is_padded=True)
        decoded = flash_decode(library, q, kv, static, contexts, scale=scale)
        return decoded, flash_prefill(library, new, kv, chunks, scale=scale)

    with torch.inference_mode():
        launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            decoded, filled = launch()
        contexts.copy_(ints([1999, 600, 0]))
        cu_seqlens.copy_(ints([0, 30, 33, 33]))
        static.copy_(static[[0, 1, 1]])
        graph.replay()
    expected = decode_reference.decode_attention(q.flatten(1), kv, static, contexts, scale=scale, cos_sin=None)
    assert error_of(decoded.flatten(1), expected) < TOLERANCES[DTYPE]
    expected = prefill_reference.prefill_attention(new, kv, static, cu_seqlens, contexts, None, scale=scale)
    assert error_of(filled, expected) < TOLERANCES[DTYPE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = TinyModel(num_hidden_layers=1, head_dim=64, num_attention_heads=2, num_key_value_heads=1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), shape)


def runner_of(folder: Path, backend: str, **settings: int) -> tuple[EngineConfig, GpuRunner]:
    config = EngineConfig(
        model=str(folder), dtype="bfloat16", attention_backend=backend, block_size=BLOCK_SIZE, num_kv_blocks=6,
        max_model_len=MAX_MODEL_LEN, **({"max_num_seqs": 4, "max_num_batched_tokens": 300} | settings),
    )  # fmt: skip
    model_config, source = open_checkpoint(folder)
    with torch.device("meta"):
        model = Transformer(model_config, MAX_MODEL_LEN, DTYPE)
    put_on_device(model, DEVICE)
    with torch.inference_mode():
        report = load_weights(model, source)
        return config, build_gpu_runner(model, report, GpuPlan(config, MAX_MODEL_LEN, DTYPE, DEVICE))


def sequence(seed: int, num_tokens: int, blocks: list[int]) -> Sequence:
    token_ids = [(7 * seed + 13 * index) % 256 for index in range(num_tokens)]
    made = Sequence(str(seed), 0, token_ids, SamplingParams(temperature=0.0), 0)
    made.status, made.block_table = SequenceStatus.RUNNING, blocks
    return made


def logits_of_steps(runner: GpuRunner) -> list[Tensor]:
    """Of a prompt in two chunks beside another, their decodes, and drafts that see each other."""
    first, second = sequence(1, PROMPT, [4, 1]), sequence(2, 5, [2])
    steps = [
        [(first, CHUNK, ()), (second, 4, ())], [(second, 1, ()), (first, PROMPT - CHUNK, ())], [(first, 1, ())],
        [(first, 1, (9, 8)), (second, 1, ())],
    ]  # fmt: skip
    found: list[Tensor] = []
    for step in steps:
        batch = [ScheduledSequence(each, count, drafts) for each, count, drafts in step]
        logits = runner.forward(batch).float().cpu()
        if len(logits):
            found.append(logits)
        for each, count, _ in step:
            each.num_computed_tokens += count
            if each.num_computed_tokens == len(each.token_ids):
                each.append((7 * len(each.token_ids)) % 256)
    return found


@pytest.mark.skipif(IS_GPU and not IS_INSTALLED, reason="a graph cannot hold the stand-in")
@pytest.mark.usefixtures("library")
def test_steps_give_the_logits_that_our_kernels_give(folder: Path) -> None:
    expected, computed = (logits_of_steps(runner_of(folder, backend)[1]) for backend in ("triton", "flash"))
    assert [len(each) for each in computed] == [2, 1, 4]
    for wanted, got in zip(expected, computed, strict=True):
        assert error_of(got, wanted) < 2e-2  # a layer's roundings to bfloat16 in other places


@pytest.mark.skipif(IS_GPU and not IS_INSTALLED, reason="a graph cannot hold the stand-in")
def test_the_engine_answers_and_says_what_attends(library: FlashLibrary, folder: Path) -> None:
    config, runner = runner_of(folder, "flash", max_num_batched_tokens=8)
    assert runner.info.kernels["attention"] == f"flash-attn {library.version}, grouped queries, pages of 256 tokens"
    engine = Engine(config, runner)
    for index, num_tokens in enumerate((7, 2)):
        params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
        engine.add_request(Submit(str(index), [index] * num_tokens, params))
    found: dict[str, list[int]] = {"0": [], "1": []}
    while engine.has_work:
        for delta in engine.step().deltas:
            found[delta.request_id] += [*delta.token_ids]
    assert [len(tokens) for tokens in found.values()] == [3, 3]
