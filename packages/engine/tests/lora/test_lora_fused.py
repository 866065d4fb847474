"""Adapters in the fused CPU decoders: as exact as layer by layer, and no row feels another's adapter."""

from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, JetMoeConfig, PreTrainedConfig
from transformers.models.deepseek_v32 import DeepseekV32Config

from deepseek_engine import LLM, LoRARequest, SamplingParams
from deepseek_engine.kernels.cpu.library import load
from deepseek_engine.lora.targets import adaptable_projections
from deepseek_engine.model_runner import open_checkpoint
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.step_model import FusedModel, TorchModel
from deepseek_engine.testing.adapters import ALL_PROJECTIONS, write_tiny_adapter
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.families import TINY, build_oracle, write_family_checkpoint

pytestmark = pytest.mark.skipif(load() is None, reason="this machine's processor or build has no CPU kernels")

LATENT: Final[dict[str, Any]] = {
    **TINY, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
SHAPES: Final[dict[str, TinyModel | PreTrainedConfig]] = {
    "llama": TinyModel(),
    "biased-tied-wide-heads": TinyModel(
        num_attention_heads=6, num_key_value_heads=2, head_dim=32, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "mixtral": TinyModel(num_local_experts=16),
    "deepseek v2-lite": DeepseekV2Config(**{**LATENT, "q_lora_rank": None, "mlp_bias": True}),
    "deepseek v3": DeepseekV3Config(**LATENT),
    "jetmoe": JetMoeConfig(**TINY, kv_channels=16, num_local_experts=8),
    "deepseek v3.2": DeepseekV32Config(**LATENT, index_n_heads=4, index_head_dim=16, index_topk=24),
}  # fmt: skip
PROMPTS = [{"prompt_token_ids": [(i * 17 + j * j) % 256 for j in range(4 + i % 7 * 9)]} for i in range(12)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


class Stage:
    """A tiny model with a few adapters of different ranks and targets."""

    def __init__(self, folder: Path, shape: TinyModel | PreTrainedConfig) -> None:
        feed_forward = ALL_PROJECTIONS[4:]
        if isinstance(shape, TinyModel):
            self.path, attention = write_tiny_checkpoint(folder / "base", shape), ALL_PROJECTIONS[:4]
        else:
            self.path = write_family_checkpoint(folder / "base", build_oracle(shape))
            shape = projections(self.path)
            attention = sorted({name.rpartition(".")[2] for name in shape if ".self_attn" in name})
            feed_forward = sorted({name.rpartition(".")[2] for name in shape if ".mlp." in name})
        targets = [[*attention, *feed_forward], attention[:1], attention[1:]]
        if not isinstance(shape, TinyModel) or not shape.num_local_experts:
            targets += [feed_forward[:1], feed_forward[2:], feed_forward]
        targets = [names for names in targets if names]
        self.adapters = [
            LoRARequest(f"a{i}", str(write_tiny_adapter(folder / f"a{i}", shape, rank=i + 1, targets=each, seed=i)))
            for i, each in enumerate(targets)
        ]

    def llm(self, dtype: str = "bfloat16", **settings: Any) -> LLM:
        return LLM(str(self.path), dtype=dtype, enable_lora=True, max_loras=8, num_kv_blocks=128, **settings)


def projections(folder: Path) -> dict[str, tuple[int, int]]:
    """Rows and columns of every projection of a checkpoint that an adapter may change."""
    config, _ = open_checkpoint(folder)
    targets = adaptable_projections(Transformer(config, 64, torch.bfloat16))
    return {name: (target.out_features, target.in_features) for name, target in targets.items()}


@pytest.fixture(params=SHAPES, scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("fused"), SHAPES[request.param])


def run(llm: LLM, prompts: Any, adapters: Any, params: SamplingParams) -> tuple[list[list[int]], torch.Tensor]:
    """Tokens, and the logits of every step."""
    rows: list[torch.Tensor] = []
    runner = llm.engine._runner
    sample = runner.sample
    runner.sample = lambda logits, batch: (rows.append(logits.clone()), sample(logits, batch))[1]
    try:
        outputs = llm.generate(prompts, params, adapters)
    finally:
        runner.sample = sample
    return [output.outputs[0].token_ids for output in outputs], torch.cat(rows)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_row_has_the_same_tokens_beside_other_adapters_as_alone(stage: Stage, quantization: str | None) -> None:
    llm = stage.llm(quantization=quantization, enable_prefix_caching=False)
    assert isinstance(llm.engine._runner.model, FusedModel)
    of_prompt = [([None, *stage.adapters] * 12)[i] for i in range(len(PROMPTS))]
    alone = [run(llm, prompt, each, GREEDY)[0][0] for prompt, each in zip(PROMPTS, of_prompt, strict=True)]
    assert run(llm, PROMPTS, of_prompt, GREEDY)[0] == alone


def test_rows_of_the_base_model_have_the_same_bits_beside_adapters(stage: Stage) -> None:
    llm = stage.llm(enable_prefix_caching=False)
    params = SamplingParams(temperature=0.0, max_tokens=1)
    _, alone = run(llm, PROMPTS[:1], None, params)
    adapters = [None, *stage.adapters[:3]]
    _, beside = run(llm, PROMPTS[: len(adapters)], adapters, params)
    assert torch.equal(beside[0], alone[0])


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_logits_are_as_near_to_float32_as_those_of_the_model_layer_by_layer(
    stage: Stage, quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=1)
    prompts = [{"prompt_token_ids": PROMPTS[5]["prompt_token_ids"][:end]} for end in range(1, 45, 4)]
    fused, exact = stage.llm(quantization=quantization), stage.llm("float32", quantization=quantization)
    monkeypatch.setattr("deepseek_engine.model_runner.fuse", lambda *_: None)
    by_layer = stage.llm(quantization=quantization)
    assert isinstance(by_layer.engine._runner.model, TorchModel)
    for adapter in stage.adapters:
        ours, usual, want = (
            torch.cat([run(llm, p, adapter, params)[1] for p in prompts]) for llm in (fused, by_layer, exact)
        )
        plain = torch.cat([run(fused, p, None, params)[1] for p in prompts])
        # Both round to bfloat16 between operators; a router that tips over changes a whole row, so rows are compared by
        # their median.
        error, usual_error, change = ((x - want).abs().mean(dim=-1).median() for x in (ours, usual, plain))
        assert error < 2.0 * usual_error
        assert error < 0.3 * change, "nearer to the adapter's answer than to the base model's"
