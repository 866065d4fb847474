"""The same logits on 1, 2 and 4 ranks, for every kind of attention, feed-forward and checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config, DeepseekV32Config, JetMoeConfig, LlamaConfig

from deepseek_engine.config import EngineConfig
from deepseek_engine.model_runner import ModelRunner
from deepseek_engine.quantization.int8 import quantize_rows
from deepseek_engine.step_model import TorchModel
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.families import TINY, TINY_LATENT, build_oracle, write_family_checkpoint
from deepseek_engine.testing.gguf_export import GGUFExport, Kind
from deepseek_engine.testing.logits import BLOCK_SIZE, engine_logits, sequence_of
from deepseek_engine.testing.quantized import FP8, INT8, fp8_tensors, is_projection, rewrite
from deepseek_engine.testing.thread_ranks import on_every_rank

TOLERANCE: Final = 1e-5
"""Of the largest logit: float32 sums whose parts are added in another order."""
INT8_TOLERANCE: Final = 1e-3
"""Likewise. A rank writes its part of an activation in steps of 1/16256 of the largest value in that part, so steps
differ with the number of ranks; weights do not."""
CHUNKS: Final = (70, 1, 25, 1, 1)
TOKENS: Final = torch.randint(0, 256, (sum(CHUNKS),), generator=torch.Generator().manual_seed(7)).tolist()

EVEN: Final = 4 * 65
"""A vocabulary that 4 ranks divide, as 259 is not: the head is cut."""
V3: Final[dict[str, Any]] = {**TINY_LATENT, "n_group": 4, "topk_group": 2}


def tiny(model: TinyModel) -> Callable[[Path], Path]:
    return lambda folder: write_tiny_checkpoint(folder, model)


def family(config: Any, *, fused_experts: bool = False) -> Callable[[Path], Path]:
    return lambda folder: write_family_checkpoint(folder, build_oracle(config), fused_experts=fused_experts)


def fp8(config: Any, *, fused_experts: bool = False) -> Callable[[Path], Path]:
    """Blocks of 16 rows and 24 columns, at whose edges no rank's part begins."""

    def write(folder: Path) -> Path:
        family(config, fused_experts=fused_experts)(folder)
        rewrite(folder, lambda tensors: fp8_tensors(tensors, (16, 24)), {**FP8, "weight_block_size": [16, 24]})
        return folder

    return write


def int8_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_projection(name, tensor):
            found[name], scale = quantize_rows(tensor)
            found[f"{name}_scale"] = scale.unsqueeze(-1)
        else:
            found[name] = tensor
    return found


def compressed(folder: Path) -> Path:
    write_tiny_checkpoint(folder, TINY_MOE)
    rewrite(folder, int8_tensors, INT8)
    return folder


def gguf(config: Any, kind: Kind) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        family(config)(folder)
        return GGUFExport(folder, lambda _: kind).write(folder / "model.gguf")

    return write


@dataclass(frozen=True, slots=True)
class Case:
    write: Callable[[Path], Path]
    quantization: str | None = None
    tolerance: float = TOLERANCE


CASES: Final[dict[str, Case]] = {
    "mixtral 16x2": Case(tiny(TINY_MOE)),
    "mixtral 16x2 fused, int8": Case(tiny(TinyModel(num_local_experts=16, fused_experts=True)), "int8", INT8_TOLERANCE),
    "llama, more ranks than KV heads, biases": Case(tiny(TinyModel(attention_bias=True, mlp_bias=True))),
    "llama, one KV head, tied and cut head": Case(
        tiny(TinyModel(num_key_value_heads=1, tie_word_embeddings=True, vocab_size=EVEN))
    ),
    "llama, cut head, int8": Case(tiny(TinyModel(vocab_size=EVEN)), "int8", INT8_TOLERANCE),
    "deepseek v2-lite": Case(family(DeepseekV2Config(**TINY_LATENT | {"q_lora_rank": None}))),
    "deepseek v2, biases": Case(family(DeepseekV2Config(**TINY_LATENT, attention_bias=True, mlp_bias=True))),
    "deepseek v3, groups": Case(family(DeepseekV3Config(**V3))),
    "deepseek v3, fused, fp8 blocks": Case(
        fp8(DeepseekV3Config(**V3 | {"moe_intermediate_size": 16}), fused_experts=True)
    ),
    "deepseek v3, fp8 blocks, int8": Case(fp8(DeepseekV3Config(**V3)), "int8", INT8_TOLERANCE),
    "deepseek v3.2": Case(family(DeepseekV32Config(**V3, index_n_heads=16, index_head_dim=16, index_topk=20))),
    "jetmoe": Case(family(JetMoeConfig(**TINY | {"num_key_value_heads": 4, "num_attention_heads": 8}, kv_channels=16))),
    "compressed-tensors int8": Case(compressed, tolerance=INT8_TOLERANCE),
    "gguf Q8_0": Case(gguf(LlamaConfig(**TINY | {"hidden_size": 64, "intermediate_size": 128}), Kind.Q8_0)),
}


def all_logits(runner: ModelRunner) -> Tensor:
    sequence = sequence_of(TOKENS, len(TOKENS))
    return torch.cat([engine_logits(runner, sequence, num_new) for num_new in CHUNKS])


def weights(runner: ModelRunner) -> dict[str, Tensor]:
    assert isinstance(runner.model, TorchModel)
    return dict(runner.model.transformer.named_parameters())


def engine_config(path: Path, quantization: str | None = None) -> EngineConfig:
    return EngineConfig(
        model=str(path), dtype="float32", quantization=quantization, num_kv_blocks=32, block_size=BLOCK_SIZE,
        max_model_len=512, num_threads=1,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_logits_do_not_depend_on_the_number_of_ranks(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    config = engine_config(case.write(tmp_path / "model"), case.quantization)
    [alone] = on_every_rank(config, 1, all_logits)
    for size in (2, 4):
        ranks = on_every_rank(config, size, all_logits)
        error = (ranks[0] - alone).abs().max() / alone.abs().max()
        assert error < case.tolerance
        assert all(torch.equal(ranks[0], other) for other in ranks[1:]), "one rank's routing differs from another's"


def test_int8_weights_are_the_same_integers_on_every_number_of_ranks(tmp_path: Path) -> None:
    config = engine_config(write_tiny_checkpoint(tmp_path, TINY_MOE), "int8")
    [whole] = on_every_rank(config, 1, weights)
    ranks = on_every_rank(config, 4, weights)
    for name, side in (("attention.output", -1), ("feed_forward.experts", -1)):
        parameter = f"layers.1.{name}." + ("weight" if "output" in name else "down")
        assert torch.equal(torch.cat([rank[parameter] for rank in ranks], side), whole[parameter])
        assert all(torch.equal(rank[f"{parameter}_scale"], whole[f"{parameter}_scale"]) for rank in ranks)
    gates = [rank["layers.1.feed_forward.experts.gate_up"][:, :24] for rank in ranks]
    assert torch.equal(torch.cat(gates, 1), whole["layers.1.feed_forward.experts.gate_up"][:, :96])
    scales = [rank["layers.1.feed_forward.experts.gate_up_scale"][:, 24:] for rank in ranks]
    assert torch.equal(torch.cat(scales, 1), whole["layers.1.feed_forward.experts.gate_up_scale"][:, 96:])


def test_a_rank_holds_its_share_of_weights_and_cache(tmp_path: Path) -> None:
    config = engine_config(write_tiny_checkpoint(tmp_path, TinyModel(vocab_size=EVEN, num_key_value_heads=4)))
    [whole] = on_every_rank(config, 1, lambda runner: runner.info)
    ranks = on_every_rank(config, 4, lambda runner: runner.info)
    embedding_and_norms = (EVEN + 5) * 64 * 4
    for info in ranks:
        assert info.weight_bytes - embedding_and_norms == (whole.weight_bytes - embedding_and_norms) // 4
        assert info.kv_cache_bytes == whole.kv_cache_bytes // 4


def test_a_tied_head_counts_once(tmp_path: Path) -> None:
    tied = write_tiny_checkpoint(tmp_path, TinyModel(vocab_size=EVEN, tie_word_embeddings=True))
    reports = on_every_rank(engine_config(tied), 2, lambda runner: runner.load_report)
    assert all("head" not in report.bytes_by_kind for report in reports)
