"""The same tokens however a request is served: every way of scheduling against the request alone, family by family.

A cell is the number of answers that were compared token by token, greedy ones and ones with a seed. It is printed as a
table after the last test.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    JetMoeConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
)
from transformers.models.deepseek_v32 import DeepseekV32Config

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.kernels.cpu.library import load
from deepseek_engine.step_model import FusedModel
from deepseek_engine.testing.families import TINY, build_oracle, write_family_checkpoint

NUM_TOKENS: Final = 20

MLA: Final[dict[str, Any]] = {
    **TINY, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "moe_intermediate_size": 24, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
V3: Final = {**MLA, "n_group": 4, "topk_group": 2}
WIDER_V3: Final = {**V3, "moe_intermediate_size": 32}
"""As the CPU kernels take it: a multiple of 16."""


@dataclass(frozen=True, slots=True)
class Row:
    """A model, and how it is stored. `is_exact`: log-probabilities are equal too, to the last bit."""

    config: PreTrainedConfig
    settings: dict[str, Any] = field(default_factory=lambda: {"dtype": "float32"})
    is_exact: bool = False


BFLOAT16: Final = {"dtype": "bfloat16"}
INT8: Final = {"dtype": "float32", "quantization": "int8"}
INT8_KERNELS: Final = {"dtype": "bfloat16", "quantization": "int8"}

ROWS: Final[dict[str, Row]] = {
    "llama": Row(LlamaConfig(**TINY)),
    "qwen3": Row(Qwen3Config(**TINY, head_dim=16)),
    "mixtral 16x2": Row(MixtralConfig(**TINY, num_local_experts=16)),
    "jetmoe 8x2": Row(JetMoeConfig(**TINY, kv_channels=16, num_local_experts=8)),
    "deepseek v2": Row(DeepseekV2Config(**MLA)),
    "deepseek v3": Row(DeepseekV3Config(**V3)),
    "deepseek v3.2, index_topk 24": Row(DeepseekV32Config(**V3, index_n_heads=4, index_head_dim=16, index_topk=24)),
    "llama int8": Row(LlamaConfig(**TINY), INT8),
    "mixtral 16x2 int8": Row(MixtralConfig(**TINY, num_local_experts=16), INT8),
    "llama bfloat16": Row(LlamaConfig(**TINY), BFLOAT16, is_exact=True),
    "mixtral 16x2 bfloat16": Row(MixtralConfig(**TINY, num_local_experts=16), BFLOAT16, is_exact=True),
    "jetmoe 8x2 bfloat16": Row(JetMoeConfig(**TINY, kv_channels=16, num_local_experts=8), BFLOAT16, is_exact=True),
    "deepseek v3 bfloat16": Row(DeepseekV3Config(**WIDER_V3), BFLOAT16, is_exact=True),
    "deepseek v3 int8, kernels": Row(DeepseekV3Config(**WIDER_V3), INT8_KERNELS, is_exact=True),
    "deepseek v3.2, index_topk 24, bfloat16": Row(
        DeepseekV32Config(**WIDER_V3, index_n_heads=4, index_head_dim=16, index_topk=24), BFLOAT16, is_exact=True
    ),
    "llama int8, kernels": Row(LlamaConfig(**TINY), INT8_KERNELS, is_exact=True),
    "mixtral 16x2 int8, kernels": Row(MixtralConfig(**TINY, num_local_experts=16), INT8_KERNELS, is_exact=True),
}

SPECULATIVE: Final = {
    "speculation": "ngram", "ngram_min": 1, "num_speculative_tokens": 4, "adaptive_speculation": False
}  # fmt: skip
COLUMNS: Final[dict[str, dict[str, Any]]] = {
    "batched": {"max_num_seqs": 16},
    "chunked": {"max_num_seqs": 6, "max_num_batched_tokens": 19},
    "preempted": {"preempt_every_steps": 3},
    "cache hit": {},
    "speculative": SPECULATIVE,
    "all at once": {"preempt_every_steps": 4, "max_num_seqs": 6, "max_num_batched_tokens": 29, **SPECULATIVE},
}

SHARED: Final = [(3 * i + i * i) % 256 for i in range(40)]
PROMPTS: Final = [
    {"prompt_token_ids": ids}
    for ids in ([*SHARED, 1, 2, 3], [*SHARED, 4, 5], [7, 8, 9] * 8, [*b"the end of the end of the"], [250], [11, 12])
]
GREEDY: Final = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
SEEDED: Final = [
    SamplingParams(temperature=0.4, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0),
    SamplingParams(temperature=0.7, seed=6, top_p=0.9, top_k=40, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0),
]
REQUESTS: Final = [(prompt, params) for prompt in PROMPTS for params in (GREEDY, *SEEDED)]

cells: dict[str, dict[str, str]] = {}

Answers = list[tuple[list[int], list[float]]]


def answers(llm: LLM) -> Answers:
    """Tokens and log-probabilities of every request, all submitted together."""
    prompts, params = zip(*REQUESTS, strict=True)
    outputs = [request.outputs[0] for request in llm.generate(prompts, params, use_tqdm=False)]
    return [(output.token_ids, [entry.logprob for entry in output.logprobs or ()]) for output in outputs]


@pytest.fixture(params=ROWS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family_checkpoint(tmp_path_factory.mktemp("checkpoint"), build_oracle(ROWS[name].config))


@pytest.fixture(scope="module")
def alone(name: str, checkpoint: Path) -> Answers:
    """Each request in an engine that serves one at a time and remembers nothing."""
    settings = {**ROWS[name].settings, "max_num_seqs": 1, "enable_prefix_caching": False, "num_kv_blocks": 64}
    return answers(LLM(str(checkpoint), **settings))


@pytest.mark.parametrize("column", COLUMNS)
def test_answers_are_those_of_the_request_alone(name: str, column: str, checkpoint: Path, alone: Answers) -> None:
    row = ROWS[name]
    llm = LLM(str(checkpoint), num_kv_blocks=256, **{**row.settings, **COLUMNS[column]})
    found = answers(llm)
    if column == "cache hit":
        before = llm.engine.step().stats.num_prefix_hits
        found = answers(llm)
        assert llm.engine.step().stats.num_prefix_hits > before
    stats = llm.engine.step().stats
    assert ("preempt_every_steps" in COLUMNS[column]) == (stats.num_preemptions > 0)
    assert ("speculation" in COLUMNS[column]) == (stats.num_accepted_tokens > 0)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in alone]
    is_exact = row.is_exact and load() is not None
    if row.is_exact:
        assert isinstance(llm.engine._runner.model, FusedModel) == is_exact
    if is_exact:
        assert [logprobs for _, logprobs in found] == [logprobs for _, logprobs in alone]
    kinds = [params.is_greedy for _, params in REQUESTS]
    cells.setdefault(name, {})[column] = f"{kinds.count(True)}+{kinds.count(False)}" + (" =" if is_exact else "")


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print what was compared, after the last test."""
    yield
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    if capture is None or not cells:
        return
    lines = [f"\n\n{f'equal answers of {NUM_TOKENS} tokens, greedy+seeded':44}" + "".join(f"{c:>13}" for c in COLUMNS)]
    for row, columns in cells.items():
        lines.append(f"{row:44}" + "".join(f"{columns.get(column, '-'):>13}" for column in COLUMNS))
    lines.append("= : log-probabilities are equal to the last bit as well")
    with capture.global_and_fixture_disabled():
        sys.stdout.write("\n".join(lines) + "\n")
