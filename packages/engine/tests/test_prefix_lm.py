"""Prefix-LM serving: prompts attend to themselves in both directions, answers are causal, whatever the schedule."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DeepseekV2Config, LlamaConfig, PreTrainedConfig
from transformers.models.deepseek_v32 import DeepseekV32Config

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import ContextLengthError, InvalidRequestError
from deepseek_engine.llm import LLM
from deepseek_engine.messages import Submit
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.testing.checkpoints import write_tiny_checkpoint
from deepseek_engine.testing.fake_runner import build_fake_runner, expected_tokens
from deepseek_engine.testing.families import TINY, build_oracle, write_family_checkpoint

TOLERANCE = 1e-4
NUM_NEW = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True)

LATENT = {
    **TINY,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "latent attention": DeepseekV2Config(**LATENT, n_shared_experts=1),
    "sparse attention": DeepseekV32Config(**LATENT, n_group=2, topk_group=1, index_n_heads=16, index_topk=20),
}

Oracle = Callable[[list[int], int], torch.Tensor]
"""Token ids and the length of their prefix to logits at every position."""


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    """A checkpoint, and transformers' model of it with a dense mask of our own."""
    config: PreTrainedConfig = CONFIGS[request.param]
    oracle = build_oracle(config)
    folder = write_family_checkpoint(tmp_path_factory.mktemp("checkpoint"), oracle)

    def logits(token_ids: list[int], prefix_len: int) -> torch.Tensor:
        is_seen = torch.ones(len(token_ids), len(token_ids), dtype=torch.bool).tril()
        is_seen[:prefix_len, :prefix_len] = True
        mask = torch.zeros(is_seen.shape).masked_fill(~is_seen, torch.finfo(torch.float32).min)
        with torch.inference_mode():
            return oracle(torch.tensor([token_ids]), attention_mask=mask[None, None], use_cache=False).logits[0]

    return folder, logits


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def build_llm(folder: Path, **settings: object) -> LLM:
    return LLM(str(folder), dtype="float32", num_kv_blocks=64, prompt_attention="bidirectional", **settings)


def assert_greedy(oracle: Oracle, prompt: list[int], answer: list[int]) -> None:
    """The answer is what the oracle would choose, token after token, with the prompt as its prefix."""
    expected = oracle(prompt + answer, len(prompt))[len(prompt) - 1 : -1].argmax(dim=-1)
    assert answer == expected.tolist()


def test_a_prompt_sees_itself_in_both_directions_and_the_rest_is_causal(model: tuple[Path, Oracle]) -> None:
    folder, oracle = model
    runner = build_llm(folder).engine._runner
    (token_ids,) = prompts(90)
    expected = oracle(token_ids, 50)
    sequence = Sequence("r", 0, token_ids, SamplingParams(), sampling_seed=0, prefix_len=50)
    sequence.block_table = list(range(6))
    step = runner.model
    rows = []
    for num_new in (60, 1, 29):  # the prefix and some that follow, as after a preemption; then decoding, then a chunk
        sequence.token_ids = token_ids[: sequence.num_computed_tokens + num_new]
        with torch.inference_mode():
            rows.append(step.logits(step.hidden([ScheduledSequence(sequence, num_new)])))
        sequence.num_computed_tokens += num_new
    wanted = expected[[59, 60, 89]]
    assert (torch.cat(rows) - wanted).abs().max() < TOLERANCE
    causal = oracle(token_ids, 0)
    assert (wanted - causal[[59, 60, 89]]).abs().max() > 0.1  # the direction matters


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_seqs": 3, "max_num_batched_tokens": 64},  # prefixes wait for a step that holds them whole
        {"preempt_every_steps": 3},
    ],
    ids=["at once", "in a small budget", "preempted"],
)
def test_greedy_answers_equal_the_oracle_whatever_the_schedule(
    model: tuple[Path, Oracle], settings: dict[str, int]
) -> None:
    folder, oracle = model
    texts = prompts(60, 1, 33, 17, 50)
    outputs = build_llm(folder, **settings).generate([{"prompt_token_ids": text} for text in texts], GREEDY)
    for text, output in zip(texts, outputs, strict=True):
        assert_greedy(oracle, text, output.outputs[0].token_ids)


def test_several_answers_share_a_prompt(model: tuple[Path, Oracle]) -> None:
    folder, oracle = model
    params = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True, n=3)
    (text,) = prompts(41)
    (output,) = build_llm(folder, preempt_every_steps=5).generate([{"prompt_token_ids": text}], params)
    for answer in output.outputs:
        assert_greedy(oracle, text, answer.token_ids)


def test_prompts_do_not_reuse_each_others_beginnings(tmp_path: Path) -> None:
    llm = build_llm(write_tiny_checkpoint(tmp_path / "model"))
    (text,) = prompts(64)
    alone = llm.generate([{"prompt_token_ids": text[:48]}], GREEDY)[0]
    llm.generate([{"prompt_token_ids": text}], GREEDY)
    again = llm.generate([{"prompt_token_ids": text[:48]}], GREEDY)[0]
    assert again.outputs[0].token_ids == alone.outputs[0].token_ids
    assert again.num_cached_tokens == 0


def fake_engine(**settings: int) -> Engine:
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "num_kv_blocks": 8, "max_model_len": 64, "block_size": 4}
    config = EngineConfig(model="fake", prompt_attention="bidirectional", **sizes | settings)
    return Engine(config, build_fake_runner(config))


def test_a_prompt_beyond_the_budget_of_a_step_is_refused_with_the_way_out() -> None:
    with pytest.raises(ContextLengthError, match=r"prompt has 17 tokens.*which holds 16 tokens") as caught:
        fake_engine().add_request(Submit("r", [1] * 17, SamplingParams(max_tokens=4)))
    assert caught.value.param == "prompt"


def test_prefixes_are_never_split_while_others_decode_and_blocks_run_out() -> None:
    # The fake model asserts that no step computes a part of a prefix.
    engine = fake_engine(preempt_every_steps=4)
    answers: dict[str, list[int]] = {}
    texts = {str(i): [(7 * i + j) % 50 for j in range(1 + (5 * i) % 16)] for i in range(24)}
    for name, text in texts.items():
        engine.add_request(Submit(name, text, SamplingParams(temperature=0.0, max_tokens=6)))
        answers[name] = []
    for _ in range(2000):
        for delta in engine.step().deltas:
            answers[delta.request_id] += delta.token_ids
        if not engine.has_work:
            break
    assert answers == {name: expected_tokens(text, 6) for name, text in texts.items()}


def test_a_prefix_runs_alone_when_lack_of_memory_has_lowered_the_budget_and_is_not_split_for_it() -> None:
    engine = fake_engine()
    scheduler = engine._scheduler
    scheduler.budget.shrink(16)
    for name in ("a", "b"):
        engine.add_request(Submit(name, list(range(12)), SamplingParams(temperature=0.0, max_tokens=2)))
    batch = scheduler.schedule()
    assert [(scheduled.sequence.request_id, scheduled.num_new_tokens) for scheduled in batch] == [("a", 12)]
    assert not scheduler.back_off(batch)  # no smaller batch would help


def test_an_unknown_direction_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidRequestError, match="prompt_attention='both': choose one of causal, bidirectional"):
        EngineConfig(model="fake", prompt_attention="both")
