"""Whole steps of the GPU decoder against the same model layer by layer in PyTorch."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, PreTrainedConfig, Qwen3Config

from deepseek_engine.gpu_inputs import GpuInputs
from deepseek_engine.kernels.triton.embedding import embed
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.model_runner import open_checkpoint
from deepseek_engine.models import gpu_whole_prompts
from deepseek_engine.models.gpu_decoder import DecoderPlan, GpuDecoder
from deepseek_engine.models.gpu_whole_prompts import ChunkRun, WholePrompts
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence, SequenceStatus
from deepseek_engine.step_model import TorchModel
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.fake_bitsandbytes import install_fake_bitsandbytes
from deepseek_engine.testing.families import TINY, build_oracle, write_family_checkpoint
from deepseek_engine.weights import load_weights, store_as_int8

DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK_SIZE: Final = 16
NUM_BLOCKS: Final = 24
MAX_MODEL_LEN: Final = 128

LATENT: Final = {
    **TINY, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": None, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16, "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 2,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1,
}  # fmt: skip

Shape = TinyModel | PreTrainedConfig
SHAPES: Final[dict[str, Shape]] = {
    "llama-biases-tied": TinyModel(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mixtral-16x2": TinyModel(num_local_experts=16),
    "qwen3": Qwen3Config(**TINY, head_dim=32),
    "deepseek-v2-lite": DeepseekV2Config(**LATENT, routed_scaling_factor=1.5),
    "deepseek-v3": DeepseekV3Config(**{**LATENT, "q_lora_rank": 24}, n_group=4, topk_group=2),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """One model twice: as PyTorch runs it, and as the GPU decoder does."""

    torch_model: TorchModel
    decoder: GpuDecoder
    inputs: GpuInputs

    def expected(self, batch: list[ScheduledSequence]) -> torch.Tensor:
        """Logits of the rows that the batch samples or reads."""
        return self.torch_model.logits(self.torch_model.hidden(batch))

    def computed(self, batch: list[ScheduledSequence], padded_to: int | None = None) -> torch.Tensor:
        """The same from the decoder."""
        step = self.inputs.prepare(batch, padded_to, None)
        parts = [part.token_ids for part in (step.singles, step.chunks) if part is not None]
        x = embed(torch.cat(parts), None, torch.zeros(1, dtype=torch.int32, device=DEVICE), self.decoder.embedding)
        return self.decoder.logits_of_step(step, x)[1][: step.num_rows].float().cpu()

    def computed_padded(self, batch: list[ScheduledSequence], num_singles: int, num_tokens: int) -> torch.Tensor:
        """The same from the tensors of a graph for so many rows and tokens."""
        num_rows = self.inputs.prepare_mixed(batch, num_singles, num_tokens, None).num_rows
        step = self.inputs.mixed(num_singles, num_tokens)
        parts = [part.token_ids for part in (step.singles, step.chunks) if part is not None]
        x = embed(torch.cat(parts), None, torch.zeros(1, dtype=torch.int32, device=DEVICE), self.decoder.embedding)
        return self.decoder.logits(self.decoder.hidden(step, x))[:num_rows].float().cpu()


def load(folder: Path, dtype: torch.dtype, quantization: str | None, device: torch.device) -> Transformer:
    config, source = open_checkpoint(folder)
    model = Transformer(config, MAX_MODEL_LEN, dtype)
    if quantization == "int8":
        store_as_int8(model)
    load_weights(model, source)
    return model.to(device)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, shape in SHAPES.items():
        folder = found[name] = tmp_path_factory.mktemp(name)
        if isinstance(shape, TinyModel):
            write_tiny_checkpoint(folder, shape)
        else:
            write_family_checkpoint(folder, build_oracle(shape))
    return found


def pair_of(
    folder: Path,
    dtype: torch.dtype,
    quantization: str | None,
    max_tokens: int = 0,
    *,
    uses_bitsandbytes: bool = False,
) -> Pair:
    cpu = torch.device("cpu")
    model = load(folder, dtype, quantization, cpu)
    specs = model.config.cache_specs
    torch_model = TorchModel(model, KVCache(specs, NUM_BLOCKS, BLOCK_SIZE, dtype, cpu))
    with torch.inference_mode():
        other = load(folder, dtype, quantization, DEVICE)
        cache = KVCache(specs, NUM_BLOCKS, BLOCK_SIZE, dtype, DEVICE)
        plan = DecoderPlan(
            max_rows=8, max_model_len=MAX_MODEL_LEN, max_tokens=max_tokens, uses_bitsandbytes=uses_bitsandbytes
        )  # fmt: skip
        decoder = GpuDecoder(other, cache, plan)
    return Pair(torch_model, decoder, GpuInputs(8, MAX_MODEL_LEN // BLOCK_SIZE, BLOCK_SIZE, DEVICE))


def sequence(seed: int, num_tokens: int, blocks: list[int], prefix_len: int = 0) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(256, (num_tokens,), generator=generator).tolist()
    made = Sequence(str(seed), 0, token_ids, SamplingParams(temperature=0.0), 0, prefix_len=prefix_len)
    made.status = SequenceStatus.RUNNING
    made.block_table = blocks
    return made


def steps() -> Iterator[list[ScheduledSequence]]:
    """A prompt in chunks, a second one beside its decodes, single tokens, and drafts."""
    first = sequence(1, 37, [5, 2, 9, 14])
    second = sequence(2, 21, [7, 1, 3])
    third = sequence(3, 2, [11])

    def run(*shares: tuple[Sequence, int, tuple[int, ...]]) -> Iterator[list[ScheduledSequence]]:
        yield [ScheduledSequence(each, count, drafts) for each, count, drafts in shares]
        for each, count, _ in shares:
            each.num_computed_tokens += count
            if each.num_computed_tokens == len(each.token_ids):
                each.append((7 * len(each.token_ids)) % 256)

    yield from run((first, 33, ()), (third, 1, ()))
    yield from run((second, 21, ()), (first, 4, ()), (third, 1, ()))
    yield from run((first, 1, ()))
    yield from run((first, 1, ()), (second, 1, ()), (third, 1, ()))
    yield from run((third, 1, ()), (first, 1, (9, 8)), (second, 1, ()))


CASES: Final = [
    *((name, "float32", None) for name in SHAPES),
    ("mixtral-16x2", "bfloat16", None), ("mixtral-16x2", "bfloat16", "int8"),
    ("deepseek-v2-lite", "bfloat16", None), ("deepseek-v2-lite", "bfloat16", "int8"),
]  # fmt: skip
FEW_CASES: Final = [
    ("llama-biases-tied", "float32", None), ("mixtral-16x2", "bfloat16", "int8"), ("deepseek-v3", "float32", None),
]  # fmt: skip
"""What the interpreter has time for: each takes it ten seconds."""
TOLERANCE: Final = {"float32": 1e-4, "bfloat16": 4e-2}
"""Of logits by their norm. bfloat16: two layers of roundings at 2**-8 in other places, and INT8 activations here."""


@pytest.mark.parametrize(("name", "dtype", "quantization"), CASES if DEVICE.type == "cuda" else FEW_CASES)
def test_steps_give_the_logits_that_torch_gives(
    name: str, dtype: str, quantization: str | None, folders: dict[str, Path]
) -> None:
    pair = pair_of(folders[name], getattr(torch, dtype), quantization)
    with torch.inference_mode():
        for index, batch in enumerate(steps()):
            expected = pair.expected(batch)
            padded_to = 4 if index == 3 else None
            out = pair.computed(batch, padded_to)
            assert out.shape == expected.shape
            error = (out - expected).norm() / expected.norm().clamp(min=1e-9)  # a step may want no row
            assert error < TOLERANCE[dtype], f"step {index}: {error}"


def test_a_bidirectional_prefix_is_seen_from_both_sides(folders: dict[str, Path]) -> None:
    for name in ("mixtral-16x2", "deepseek-v2-lite"):  # grouped queries, and a latent
        pair = pair_of(folders[name], torch.float32, None)
        batch = [ScheduledSequence(sequence(1, 37, [5, 2, 9], prefix_len=30), 37)]
        with torch.inference_mode():
            expected, out = pair.expected(batch), pair.computed(batch)
        assert (out - expected).norm() / expected.norm() < TOLERANCE["float32"]


def test_a_step_padded_to_the_size_of_a_graph_gives_the_same(folders: dict[str, Path]) -> None:
    pair = pair_of(folders["mixtral-16x2"], torch.float32, None)
    pair.inputs.reserve_chunks(48)
    with torch.inference_mode():
        for index, batch in enumerate(steps()):
            if index < 2:
                expected, out = pair.expected(batch), pair.computed_padded(batch, 8, 48)
                error = (out - expected).norm() / expected.norm().clamp(min=1e-9)
                assert out.shape == expected.shape
                assert error < TOLERANCE["float32"], f"step {index}: {error}"
        alone = [ScheduledSequence(sequence(5, 9, [4]), 9)]
        expected, out = pair.expected(alone), pair.computed_padded(alone, 0, 48)
        assert (out - expected).norm() / expected.norm() < TOLERANCE["float32"]


def error_of(pair: Pair, batch: list[ScheduledSequence]) -> float:
    expected = pair.expected(batch)
    return float((pair.computed(batch) - expected).norm() / expected.norm().clamp(min=1e-9))


def test_long_whole_prompts_attend_beside_the_pages(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_whole_prompts, "GRAIN", 8)
    monkeypatch.setattr(gpu_whole_prompts, "LEAST_LENGTH", 16)
    pair = pair_of(folders["mixtral-16x2"], torch.bfloat16, None, max_tokens=128)
    lengths: list[int | None] = []
    attend = WholePrompts.attend

    def noted(self: WholePrompts, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, run: ChunkRun, *rest: Any) -> None:
        lengths.append(run.padded)
        attend(self, q, k, v, run, *rest)

    monkeypatch.setattr(WholePrompts, "attend", noted)
    behind = sequence(6, 40, [0, 1, 2])  # its second chunk has cached tokens in front
    whole = [sequence(seed, 66, [*range(5 * seed - 2, 5 * seed + 3)]) for seed in (1, 2, 3)]
    with torch.inference_mode():
        assert error_of(pair, [ScheduledSequence(behind, 20)]) < TOLERANCE["bfloat16"]
        behind.num_computed_tokens = 20
        step = [
            *(ScheduledSequence(each, 66) for each in whole),
            ScheduledSequence(behind, 20),
            ScheduledSequence(sequence(8, 3, [18]), 3),
            ScheduledSequence(sequence(9, 1, [19]), 1),
            ScheduledSequence(sequence(10, 21, [20, 21]), 21),
        ]
        assert error_of(pair, step) < TOLERANCE["bfloat16"]
    layers = 2
    assert lengths == [24] * layers + [72, 72, 72, 24] * layers
    assert "cudnn" in pair.decoder.kernels()["long prompts"]


BITSANDBYTES_SHAPES: Final[dict[str, Shape]] = {
    "llama": TinyModel(num_hidden_layers=1, vocab_size=260, attention_bias=True, mlp_bias=True),
    "llama-tied": TinyModel(num_hidden_layers=1, tie_word_embeddings=True),
    "deepseek-v3": DeepseekV3Config(**{**LATENT, "vocab_size": 260, "q_lora_rank": 24}, n_group=4, topk_group=2),
}
OTHERS: Final = {
    "llama": "", "llama-tied": ", triton and cublas for the head in bfloat16", "deepseek-v3": ", triton for experts"
}  # fmt: skip

NUM_PRODUCTS: Final[dict[str, Counter[int]]] = {
    "llama": Counter({20: 4, 1: 1 + 4 + 1, 2: 4 + 1}),
    "llama-tied": Counter({20: 4, 1: 4, 2: 4}),
    "deepseek-v3": Counter({20: 8, 1: 1 + 8 + 1, 2: 8 + 1}),
}
"""By tokens: those of the layers, and of the head for the rows that are wanted."""


@pytest.mark.parametrize("is_installed", [False] + (DEVICE.type == "cuda") * [True])
@pytest.mark.parametrize("name", BITSANDBYTES_SHAPES)
def test_bitsandbytes_multiplies_dense_int8_weights_at_every_number_of_rows(
    name: str, is_installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_installed:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra that is not installed here")
    fake = None if is_installed else install_fake_bitsandbytes(monkeypatch)
    shape = BITSANDBYTES_SHAPES[name]
    if isinstance(shape, TinyModel):
        write_tiny_checkpoint(tmp_path, shape)
    else:
        write_family_checkpoint(tmp_path, build_oracle(shape))
    pair = pair_of(tmp_path, torch.bfloat16, "int8", uses_bitsandbytes=True)
    first, second = sequence(1, 19, [5, 2]), sequence(2, 2, [7])
    prompts, one = [ScheduledSequence(first, 19), ScheduledSequence(second, 1)], [ScheduledSequence(first, 1)]
    with torch.inference_mode():
        assert close(pair.computed(prompts), pair.expected(prompts))
        first.num_computed_tokens, second.num_computed_tokens = 19, 1
        first.append(9)
        for batch in (one, [*one, ScheduledSequence(second, 1)]):
            assert close(pair.computed(batch), pair.expected(batch))
    kernels = pair.decoder.kernels()
    assert kernels["one token"] == "as few rows"
    assert kernels["few rows"] == kernels["many rows"]
    assert re.fullmatch(
        rf"bitsandbytes 0\.50\.\d for dense layers, int8 x int8 with a scale a token{OTHERS[name]}", kernels["few rows"]
    )
    if fake is not None:
        assert Counter(num_tokens for num_tokens, _, _ in fake.products) == NUM_PRODUCTS[name]


def close(out: torch.Tensor, expected: torch.Tensor) -> bool:
    """As far as INT8 activations with one scale a token leave it."""
    return out.shape == expected.shape and float((out - expected).norm() / expected.norm()) < 6e-2
