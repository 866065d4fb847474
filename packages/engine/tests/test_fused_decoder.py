"""Whole steps in the CPU kernels against the same model layer by layer, and against themselves in other batches."""

import json
import logging
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config, JetMoeConfig, PhimoeConfig, PreTrainedConfig
from transformers.models.deepseek_v32 import DeepseekV32Config

from deepseek_engine.config import EngineConfig
from deepseek_engine.kernels.cpu.library import load
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.model_runner import build_runner, open_checkpoint
from deepseek_engine.models.fused_decoder import FusedDecoder, fuse
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.paged_inputs import prepare_paged_step
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.step_inputs import prepare_step
from deepseek_engine.step_model import FusedModel
from deepseek_engine.testing import deepseek_moe_reference
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint, write_tokenizer
from deepseek_engine.testing.families import TINY, build_oracle, write_family_checkpoint
from deepseek_engine.weights import load_weights, store_as_int8

pytestmark = pytest.mark.skipif(load() is None, reason="this machine's processor or build has no CPU kernels")

DEEPSEEK_MOE: Final = {
    **TINY, "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "moe_intermediate_size": 32,
    "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "norm_topk_prob": False, "scoring_func": "softmax", "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "attention_bias": False, "hidden_act": "silu",
}  # fmt: skip

LATENT: Final = {
    **TINY, "num_key_value_heads": 4, "kv_lora_rank": 48, "q_lora_rank": None, "qk_nope_head_dim": 18,
    "qk_rope_head_dim": 10, "v_head_dim": 14, "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1,
}  # fmt: skip
YARN: Final = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9,
    "original_max_position_embeddings": 128,
}  # fmt: skip
V3: Final = {
    **LATENT, "q_lora_rank": 24, "kv_lora_rank": 80, "qk_rope_head_dim": 24, "n_group": 4, "topk_group": 2,
    "routed_scaling_factor": 2.5, "rope_parameters": YARN,
}  # fmt: skip

Shape = TinyModel | PreTrainedConfig | dict[str, Any]

SHAPES: Final[dict[str, Shape]] = {
    "llama": TinyModel(),
    "llama-biases-tied-gqa": TinyModel(
        num_attention_heads=6, num_key_value_heads=2, head_dim=32, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "llama-odd-sizes": TinyModel(hidden_size=52, intermediate_size=48, vocab_size=301, num_key_value_heads=1),
    "mixtral-16x2": TinyModel(num_local_experts=16),
    "mixtral-4x3": TinyModel(num_local_experts=4, num_experts_per_tok=3, rope_theta=1e6),
    "deepseek-moe": DEEPSEEK_MOE,
    "deepseek-moe-renormalised-unshared": {
        **DEEPSEEK_MOE, "norm_topk_prob": True, "n_shared_experts": None, "attention_bias": True,
        "first_k_dense_replace": 0, "moe_layer_freq": 2,
    },
    "deepseek-v2-lite": DeepseekV2Config(**LATENT, routed_scaling_factor=1.5),
    "deepseek-v2-grouped": DeepseekV2Config(
        **{**LATENT, "q_lora_rank": 20, "attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
        topk_method="group_limited_greedy", n_group=4, topk_group=2,
    ),
    "deepseek-v3": DeepseekV3Config(**V3),
    "deepseek-v3-even": DeepseekV3Config(**{**V3, "kv_lora_rank": 64, "qk_rope_head_dim": 32}),
    "deepseek-v3-half-split": DeepseekV3Config(
        **{**V3, "routed_scaling_factor": 1.0}, rope_interleave=False, norm_topk_prob=False
    ),
    "deepseek-v3.2": DeepseekV32Config(**V3, index_n_heads=4, index_head_dim=32, index_topk=512),
    "deepseek-v3.2-sparse": DeepseekV32Config(**V3, index_n_heads=13, index_head_dim=34, index_topk=40),
    "jetmoe": JetMoeConfig(**TINY, kv_channels=16, num_local_experts=8),
    "jetmoe-3": JetMoeConfig(**TINY, kv_channels=32, num_local_experts=5, num_experts_per_tok=3),
    "phimoe": PhimoeConfig(**TINY, attention_bias=True, lm_head_bias=True),
}  # fmt: skip
NUM_BLOCKS = 64
BLOCK_SIZE = 16


@pytest.fixture(params=SHAPES, scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp(request.param), SHAPES[request.param])


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    if isinstance(shape, TinyModel):
        return write_tiny_checkpoint(folder, shape)
    if isinstance(shape, PreTrainedConfig):
        return write_family_checkpoint(folder, build_oracle(shape))
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(shape))
    save_file(deepseek_moe_reference.random_tensors(shape, seed=0), folder / "model.safetensors")
    return folder


def loaded(folder: Path, dtype: torch.dtype, *, int8: bool = False) -> tuple[Transformer, KVCache]:
    config, source = open_checkpoint(folder)
    model = Transformer(config, 512, dtype)
    if int8:
        store_as_int8(model)
    with torch.inference_mode():
        load_weights(model, source)
    return model, KVCache(config.cache_specs, NUM_BLOCKS, BLOCK_SIZE, dtype, torch.device("cpu"))


def fused(folder: Path, *, int8: bool = False) -> FusedDecoder:
    model, cache = loaded(folder, torch.bfloat16, int8=int8)
    decoder = fuse(model, cache, 512)
    assert decoder is not None
    return decoder


def sequence_of(token_ids: list[int], first_block: int) -> Sequence:
    sequence = Sequence("r", 0, token_ids, SamplingParams(), sampling_seed=0)
    sequence.block_table = list(range(first_block, first_block + -(-len(token_ids) // BLOCK_SIZE)))
    return sequence


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def step_logits(decoder: FusedDecoder, batch: list[ScheduledSequence]) -> Tensor:
    """Logits of every row of a step."""
    with torch.inference_mode():
        inputs = prepare_paged_step(batch, BLOCK_SIZE)
        rows = torch.arange(inputs.token_ids_T.shape[0])
        logits = decoder.logits(decoder.hidden(inputs.token_ids_T, rows, inputs.batch))
    for scheduled in batch:
        scheduled.sequence.num_computed_tokens += scheduled.num_new_tokens
    return logits


def torch_logits(
    folder: Path, token_ids: list[int], dtype: torch.dtype, *, int8: bool = False, prefix_len: int = 0
) -> Tensor:
    model, cache = loaded(folder, dtype, int8=int8)
    sequence = sequence_of(token_ids, 3)
    sequence.prefix_len = prefix_len
    inputs = prepare_step([ScheduledSequence(sequence, len(token_ids))], BLOCK_SIZE, dtype)
    with torch.inference_mode():
        return model(inputs.token_ids_T, inputs.positions_T, torch.arange(len(token_ids)), cache, inputs.metadata)


@pytest.mark.usefixtures("either_unit")
@pytest.mark.parametrize("int8", [False, True])
def test_logits_are_as_near_to_float32_as_those_of_torchs_operators(checkpoint: Path, int8: bool) -> None:
    token_ids = random_ids(100, seed=1)
    exact = torch_logits(checkpoint, token_ids, torch.float32, int8=int8)
    by_layer = torch_logits(checkpoint, token_ids, torch.bfloat16, int8=int8)
    ours = step_logits(fused(checkpoint, int8=int8), [ScheduledSequence(sequence_of(token_ids, 5), 100)])
    # Both round to bfloat16 between operators, 2^-9 relative each time. A router that tips over changes a whole row,
    # and so does an indexer's choice of keys, so rows are compared by their median.
    error, usual = ((logits - exact).abs().mean(dim=-1).median() for logits in (ours, by_layer))
    assert error < 1.5 * usual
    assert error < 0.025 * exact.abs().mean()


@pytest.mark.usefixtures("either_unit")
@pytest.mark.parametrize("int8", [False, True])
def test_a_token_has_the_same_bits_in_every_batch_and_chunk(checkpoint: Path, int8: bool) -> None:
    decoder = fused(checkpoint, int8=int8)
    token_ids = random_ids(70, seed=2)
    whole = step_logits(decoder, [ScheduledSequence(sequence_of(token_ids, 0), 70)])
    others = [sequence_of(random_ids(150, seed=3 + i), 10 + 10 * i) for i in range(4)]
    cut = sequence_of(token_ids, 5)
    parts = []
    for index, num_new in enumerate([1, 19, 33, *[1] * 17]):
        batch = [ScheduledSequence(other, 1 + (index + place) % 7) for place, other in enumerate(others)]
        batch.insert(index % 5, ScheduledSequence(cut, num_new))
        before = sum(s.num_new_tokens for s in batch[: index % 5])
        parts.append(step_logits(decoder, batch)[before : before + num_new])
    assert torch.equal(torch.cat(parts), whole)


def test_a_token_has_the_same_bits_with_any_number_of_threads(checkpoint: Path) -> None:
    decoder, library = fused(checkpoint), load()
    assert library is not None
    token_ids = random_ids(70, seed=5)
    found: list[Tensor] = []
    try:
        for first_block, num_threads in ((0, 1), (10, 2), (20, 5)):
            library.set_num_threads(num_threads)
            sequence = sequence_of(token_ids, first_block)
            parts = [step_logits(decoder, [ScheduledSequence(sequence, num_new)]) for num_new in (67, 1, 1, 1)]
            found.append(torch.cat(parts))
    finally:
        library.set_num_threads(torch.get_num_threads())
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


def test_a_prefix_attends_to_itself_in_both_directions(checkpoint: Path) -> None:
    token_ids = random_ids(60, seed=4)
    exact = torch_logits(checkpoint, token_ids, torch.float32, prefix_len=40)
    causal = torch_logits(checkpoint, token_ids, torch.float32)
    sequence = sequence_of(token_ids, 5)
    sequence.prefix_len = 40
    decoder = fused(checkpoint)
    ours = torch.cat([step_logits(decoder, [ScheduledSequence(sequence, num_new)]) for num_new in (45, 15)])
    error = (ours - exact).abs().mean(dim=-1).median()
    assert error < 0.025 * exact.abs().mean()
    assert error < 0.5 * (causal - exact).abs().mean(dim=-1).median()


def test_the_runner_takes_the_kernels_for_bfloat16_models(checkpoint: Path) -> None:
    runner = build_runner(EngineConfig(model=str(checkpoint), dtype="bfloat16", num_kv_blocks=NUM_BLOCKS))
    assert isinstance(runner.model, FusedModel)


def test_float32_models_and_odd_blocks_stay_with_torch(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m")
    assert fuse(*loaded(folder, torch.float32), 512) is None
    model, _ = loaded(folder, torch.bfloat16)
    cache = KVCache(model.config.cache_specs, NUM_BLOCKS, 8, torch.bfloat16, torch.device("cpu"))
    assert fuse(model, cache, 512) is None


def test_the_log_says_why_a_model_stays_with_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_checkpoint(tmp_path / "m", TinyModel(head_dim=24))
    with caplog.at_level(logging.INFO):
        assert fuse(*loaded(folder, torch.bfloat16), 512) is None
    assert "the CPU kernels cannot run this model: head_dim=24 is not a multiple of 16" in caplog.text
