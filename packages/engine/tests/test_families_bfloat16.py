"""Every kind of attention and router in bfloat16: near float32, and a sequence's tokens do not depend on its batch."""

from pathlib import Path

import pytest
import torch
from transformers import DeepseekV2Config, JetMoeConfig, PhimoeConfig, PreTrainedConfig
from transformers.models.deepseek_v32 import DeepseekV32Config

from deepseek_engine.llm import LLM
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.testing.families import TINY, build_oracle, write_family_checkpoint

LATENT = {
    **TINY,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "latent attention": DeepseekV2Config(**LATENT),
    "sparse attention, sigmoid router": DeepseekV32Config(
        **LATENT, n_group=2, topk_group=1, index_n_heads=16, index_topk=40
    ),
    "mixture of attention": JetMoeConfig(**TINY, kv_channels=16, num_local_experts=16),
    "sparsemixer": PhimoeConfig(**TINY),
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family_checkpoint(tmp_path_factory.mktemp("checkpoint"), build_oracle(CONFIGS[request.param]))


def build_llm(folder: Path, dtype: str, **settings: int) -> LLM:
    return LLM(str(folder), dtype=dtype, num_kv_blocks=64, enable_prefix_caching=False, **settings)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in (1, 30, 64, 90, 7)]


def test_a_prompts_logits_are_near_those_of_float32(folder: Path) -> None:
    logits = []
    for dtype in ("float32", "bfloat16"):
        model = build_llm(folder, dtype).engine._runner.model
        sequence = Sequence("r", 0, prompts()[1], SamplingParams(), sampling_seed=0)
        sequence.block_table = [3, 1]
        with torch.inference_mode():
            logits.append(model.logits(model.hidden([ScheduledSequence(sequence, 30)]))[0])
    assert torch.cosine_similarity(logits[0], logits[1], dim=0) > 0.98


def test_greedy_tokens_are_the_same_alone_and_in_a_batch_of_chunks_and_decodes(folder: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    batched = build_llm(folder, "bfloat16", max_num_seqs=8, max_num_batched_tokens=50)
    together = batched.generate([{"prompt_token_ids": text} for text in prompts()], params)
    llm = build_llm(folder, "bfloat16")
    for text, output in zip(prompts(), together, strict=True):
        alone = llm.generate([{"prompt_token_ids": text}], params)[0]
        assert output.outputs[0].token_ids == alone.outputs[0].token_ids
