"""Adapters that PEFT made, applied beside the base weights, equal PEFT's own merged models."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, Qwen3Config

from deepseek_engine import LLM, LoRARequest, SamplingParams
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.families import TINY, build_oracle, write_family_checkpoint

# PEFT asks transformers for names that are on their way out; neither is ours.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

TOLERANCE = 1e-4
"""Two float32 implementations that add in different orders."""

SHAPES = {
    "llama": TinyModel(),
    "biased-odd-sizes": TinyModel(
        hidden_size=72, intermediate_size=101, num_attention_heads=3, num_key_value_heads=3, head_dim=24, seed=2,
        attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
    ),
    "mixtral": TINY_MOE,
    "deepseek-v3": DeepseekV3Config(
        **(TINY | {"num_key_value_heads": 4}), moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2,
        n_group=2, topk_group=1, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=24, kv_lora_rank=32,
        qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
    ),
    "qwen3": Qwen3Config(**TINY, head_dim=16),
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "one-of-three-fused": ("llama", {"target_modules": ["k_proj"]}),
    "two-of-three-fused": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "output": ("llama", {"target_modules": ["o_proj"]}),
    "feed-forward": ("llama", {"target_modules": ["up_proj", "down_proj"]}),
    "all-linear": ("biased-odd-sizes", {"target_modules": "all-linear"}),
    "pattern": ("llama", {"target_modules": r".*\.1\.self_attn\.(q|v)_proj"}),
    "full-names": ("llama", {"target_modules": ["model.layers.0.mlp.gate_proj", "layers.1.self_attn.o_proj"]}),
    "rank-stabilised": ("llama", {"target_modules": ATTENTION, "use_rslora": True, "r": 5}),
    "ranks-and-alphas": (
        "llama",
        {
            "target_modules": [*ATTENTION, "gate_proj"],
            "rank_pattern": {"q_proj": 3, r"^model\.layers\.1\.self_attn\.v_proj": 9},
            "alpha_pattern": {"layers.0.mlp.gate_proj": 2, "v_proj": 24},
        },
    ),
    "one-layer": ("llama", {"target_modules": ATTENTION, "layers_to_transform": [1]}),
    "one-layer-by-pattern": (
        "llama",
        {"target_modules": ATTENTION, "layers_to_transform": 0, "layers_pattern": "layers"},
    ),
    "excluded": ("llama", {"target_modules": "all-linear", "exclude_modules": ["k_proj"]}),
    "half-precision-file": ("llama", {"target_modules": ATTENTION, "save_dtype": torch.float16}),
    "latent-attention": (
        "deepseek-v3",
        {"target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]},
    ),
    "all-linear-with-query-norms": ("qwen3", {"target_modules": "all-linear"}),
    "moe-attention": ("mixtral", {"target_modules": ATTENTION}),
}
PROMPT = [(7 * i + i * i) % 256 for i in range(60)]


class Checkpoints:
    """One checkpoint and one engine a shape."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._engines: dict[str, LLM] = {}

    def path(self, shape: str) -> Path:
        path, model = self.folder / shape, SHAPES[shape]
        if path.exists():
            return path
        if isinstance(model, TinyModel):
            return write_tiny_checkpoint(path, model)
        return write_family_checkpoint(path, build_oracle(model))

    def engine(self, shape: str) -> LLM:
        if shape not in self._engines:
            path = str(self.path(shape))
            self._engines[shape] = LLM(path, dtype="float32", num_kv_blocks=128, enable_lora=True, max_loras=2)
        return self._engines[shape]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("lora"))


def save_adapter(
    base: Path, folder: Path, *, seed: int = 0, save_dtype: torch.dtype | None = None, **config: Any
) -> Any:
    """Make an adapter with PEFT, save it, and return the model with the adapter merged into its weights."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 12} | config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                values = 0.15 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(values if save_dtype is None else values.to(save_dtype))
    if save_dtype is None:
        adapted.save_pretrained(folder)
    else:
        state = {name: tensor.to(save_dtype) for name, tensor in peft.get_peft_model_state_dict(adapted).items()}
        adapted.save_pretrained(folder, state_dict=state)
    return adapted.merge_and_unload()


def prompt_logits(llm: LLM, adapter: str | None, token_ids: list[int]) -> torch.Tensor:
    """Logits after each token of a text, which the engine is fed one by one."""
    rows: list[torch.Tensor] = []
    runner = llm.engine._runner
    sample, runner.sample = runner.sample, lambda logits, batch: (rows.append(logits), sample(logits, batch))[1]
    try:
        params = SamplingParams(temperature=0.0, max_tokens=1)
        prompts = [{"prompt_token_ids": token_ids[:end]} for end in range(1, len(token_ids) + 1, 7)]
        request = None if adapter is None else LoRARequest(adapter, llm._adapter_paths[adapter])
        for prompt in prompts:
            llm.generate(prompt, params, request)
    finally:
        runner.sample = sample
    return torch.cat(rows)


def oracle_tokens(oracle: Any, prompt: list[int], count: int) -> list[int]:
    token_ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            token_ids.append(int(oracle(torch.tensor([token_ids])).logits[0, -1].argmax()))
    return token_ids[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_equals_pefts_merged_model(kind: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    shape, config = KINDS[kind]
    merged = save_adapter(checkpoints.path(shape), tmp_path, **config)
    llm = checkpoints.engine(shape)
    adapter = LoRARequest(kind, str(tmp_path))
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    adapted, plain = llm.generate([{"prompt_token_ids": PROMPT}] * 2, params, [adapter, None])
    assert adapted.outputs[0].token_ids == oracle_tokens(merged, PROMPT, 24)
    with torch.inference_mode():
        expected = merged(torch.tensor([PROMPT])).logits[0, ::7]
    actual = prompt_logits(llm, kind, PROMPT)
    assert (actual - expected).abs().max().item() < TOLERANCE
    assert (prompt_logits(llm, None, PROMPT) - expected).abs().max().item() > 100 * TOLERANCE, (
        "the adapter does nothing"
    )
    assert plain.outputs[0].token_ids != adapted.outputs[0].token_ids
