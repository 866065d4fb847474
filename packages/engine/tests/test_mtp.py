"""Multi-token prediction: the layer's guesses are those of transformers, and no answer changes by them."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v32 import DeepseekV32Config

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import InvalidRequestError, ModelLoadError
from deepseek_engine.llm import LoRARequest
from deepseek_engine.model_runner import ModelRunner, build_runner
from deepseek_engine.mtp_model import MtpModel
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.speculation.methods import ModelDrafts
from deepseek_engine.testing.adapters import write_tiny_adapter
from deepseek_engine.testing.checkpoints import write_tiny_checkpoint
from deepseek_engine.testing.logits import BLOCK_SIZE, sequence_of
from deepseek_engine.testing.mtp import LAYER, V3, MtpOracle, write_mtp_checkpoint
from deepseek_engine.testing.quantized import FP8, fp8_tensors, from_fp8_blocks, is_projection, rewrite, to_fp8_blocks

TOLERANCE: Final = 1e-4
"""Two float32 implementations that add in different orders."""
V32: Final = {**V3, "index_n_heads": 4, "index_head_dim": 16}

SHARED: Final = [(3 * i + i * i) % 256 for i in range(40)]
PROMPTS: Final = [
    {"prompt_token_ids": ids}
    for ids in ([*SHARED, 1, 2, 3], [*SHARED, 4, 5], SHARED[:32], SHARED[:33], [7, 8, 9] * 8, [250], [11, 12])
]
GREEDY: Final = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
REQUESTS: Final = [
    GREEDY,
    SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logit_bias={17: 3.0}, logprobs=1),
    SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, repetition_penalty=1.2),
    SamplingParams(temperature=0.5, max_tokens=24, ignore_eos=True, seed=3, top_p=0.9, n=3),
    SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True),
]
MTP = {"speculation": "mtp", "adaptive_speculation": False}
WAYS: Final[dict[str, dict[str, Any]]] = {
    "one draft": {},
    "three drafts": {"num_speculative_tokens": 3},
    "more drafts than a block holds": {"num_speculative_tokens": 7, "block_size": 4},
    "in chunks": {"max_num_seqs": 6, "max_num_batched_tokens": 19, "num_speculative_tokens": 2},
    "preempted": {"preempt_every_steps": 3, "num_speculative_tokens": 2},
    "short of blocks": {"num_kv_blocks": 14, "max_model_len": 200, "num_speculative_tokens": 2},
    "without a prefix cache": {"enable_prefix_caching": False},
}


@pytest.fixture(scope="module")
def random_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mtp_checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def half_right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose layer guesses right about every other time."""
    return write_mtp_checkpoint(tmp_path_factory.mktemp("right"), damping=0.1, rightness=0.9)


@pytest.fixture(scope="module", params=["v3", "v3.2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[MtpOracle, ModelRunner]:
    folder = tmp_path_factory.mktemp("pair")
    if request.param == "v3":
        write_mtp_checkpoint(folder)
        return MtpOracle(folder), runner_of(folder, num_speculative_tokens=3)
    # transformers has no such layer for V3.2, which is V3 as long as the indexer may keep every token.
    write_mtp_checkpoint(folder, config=DeepseekV32Config(**V32, index_topk=200))
    runner = runner_of(folder, num_speculative_tokens=3)
    without(folder, ".indexer.")
    (folder / "config.json").write_text(
        json.dumps(DeepseekV3Config(**V3, architectures=["DeepseekV3ForCausalLM"]).to_dict())
    )
    return MtpOracle(folder), runner


def runner_of(folder: Path, **settings: Any) -> ModelRunner:
    sizes = {"dtype": "float32", "num_kv_blocks": 32, "block_size": BLOCK_SIZE, "max_model_len": 256}
    runner = build_runner(EngineConfig(model=str(folder), **{**MTP, **sizes, **settings}))
    assert isinstance(runner, ModelRunner)
    return runner


def without(folder: Path, part: str) -> None:
    tensors = {name: each for name, each in load_file(folder / "model.safetensors").items() if part not in name}
    save_file(tensors, folder / "model.safetensors")


def compute(runner: ModelRunner, sequence: Sequence, *chunks: int) -> None:
    for num_new in chunks:
        runner.forward([ScheduledSequence(sequence, num_new)])
        sequence.num_computed_tokens += num_new


@pytest.mark.parametrize("chunks", [(60,), (16, 16, 28), (1, 1, 30, 28), (33, 1, 1, 25), (7,) * 8], ids=str)
def test_guesses_and_their_logits_equal_the_oracle(pair: tuple[MtpOracle, ModelRunner], chunks: tuple[int]) -> None:
    oracle, runner = pair
    tokens = torch.randint(0, 256, (sum(chunks) + 1,), generator=torch.Generator().manual_seed(7)).tolist()
    expected = oracle.first_guess_logits(tokens)
    sequence = sequence_of(tokens[:-1], len(tokens) + 3)
    done = 0
    for chunk in chunks:
        compute(runner, sequence, chunk)
        done += chunk
        so_far = sequence_of(tokens[: done + 1], len(tokens) + 3)
        logits = runner.drafter.draft_logits([so_far])[0]
        assert (logits - expected[done - 1]).abs().max() < TOLERANCE
    whole = sequence_of(tokens, len(tokens) + 3)
    assert runner.drafter.draft([(whole, 3)]) == [oracle.guesses(tokens, 3)]


def test_sequences_are_guessed_for_together_each_as_far_as_it_is_asked(pair: tuple[MtpOracle, ModelRunner]) -> None:
    oracle, runner = pair
    texts = [
        [(i * i + 5 * i) % 256 for i in range(start, start + length)] for start, length in ((0, 40), (3, 2), (9, 17))
    ]
    sequences: list[Sequence] = []
    for index, text in enumerate(texts):
        sequence = sequence_of(text[:-1], 0)
        sequence.block_table = list(range(4 * index, 4 * index + 4))
        compute(runner, sequence, len(text) - 1)
        sequence.token_ids.append(text[-1])
        sequences.append(sequence)
    wanted = list(zip(sequences, (1, 3, 0), strict=True))
    expected = [oracle.guesses(text, count) for text, count in zip(texts, (1, 3, 0), strict=True)]
    assert runner.drafter.draft(wanted) == expected


@pytest.mark.parametrize("index_topk", [None, 20])
def test_filling_keeps_of_a_token_what_guessing_there_kept(tmp_path: Path, index_topk: int | None) -> None:
    config = None if index_topk is None else DeepseekV32Config(**V32, index_topk=index_topk)
    runner = runner_of(write_mtp_checkpoint(tmp_path, config=config))
    assert isinstance(runner.model, MtpModel)
    cache = runner.model.cache.layer(V3["num_hidden_layers"])
    sequence = sequence_of(SHARED, len(SHARED) + 1)
    compute(runner, sequence, len(SHARED))
    sequence.token_ids.append(5)
    runner.model.draft([(sequence, 1)])
    guessed = [entry.clone() for entry in cache]
    compute(runner, sequence, 1)
    slot = sequence.block_table[len(SHARED) // BLOCK_SIZE] * BLOCK_SIZE + len(SHARED) % BLOCK_SIZE
    for before, after in zip(guessed, cache, strict=True):
        assert before[slot].abs().max() > 0
        torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


def test_sparse_attention_guesses_without_changing_an_answer(tmp_path: Path) -> None:
    config = DeepseekV32Config(**V32, index_topk=20)
    folder = write_mtp_checkpoint(tmp_path, config=config, damping=0.1, rightness=0.9)
    plain = LLM(str(folder), dtype="float32")
    guessing = LLM(str(folder), dtype="float32", **MTP, num_speculative_tokens=2)
    expected = [request.outputs for request in plain.generate(PROMPTS, GREEDY, use_tqdm=False)]
    assert [request.outputs for request in guessing.generate(PROMPTS, GREEDY, use_tqdm=False)] == expected
    assert guessing.engine.step().stats.num_accepted_tokens > 0


class Witness:
    """Remembers by what each first guess was chosen, and makes it."""

    def __init__(self, model: MtpModel) -> None:
        self.seen: list[tuple[list[int], Tensor]] = []
        self._draft = model.draft
        self._model = model
        model.draft = self

    def __call__(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        sequences = [sequence for sequence, count in wanted if count > 0]
        logits = self._model.draft_logits(sequences)
        self.seen += [(list(each.token_ids), row) for each, row in zip(sequences, logits, strict=True)]
        return self._draft(wanted)


def answers(llm: LLM) -> list[list[tuple[list[int], str | None]]]:
    """Of every request after every prompt, in two rounds, of which the second finds the first's prompts cached."""
    prompts, params = zip(*((prompt, params) for prompt in PROMPTS for params in REQUESTS), strict=True)
    found = [*llm.generate(prompts, params, use_tqdm=False)]
    longer = [{"prompt_token_ids": prompt["prompt_token_ids"] + [40, 41, 42]} for prompt in PROMPTS]
    found += llm.generate(longer, GREEDY, use_tqdm=False)
    return [[(output.token_ids, output.finish_reason) for output in request.outputs] for request in found]


@pytest.fixture(scope="module")
def expected(half_right: Path) -> list[list[tuple[list[int], str | None]]]:
    return answers(LLM(str(half_right), dtype="float32"))


@pytest.mark.parametrize("way", WAYS)
def test_no_answer_changes_and_every_guess_is_the_oracles(half_right: Path, expected: list[Any], way: str) -> None:
    llm = LLM(str(half_right), dtype="float32", **MTP, **WAYS[way])
    witness = Witness(llm.engine._runner.model)
    assert answers(llm) == expected
    stats = llm.engine.step().stats
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    if "num_kv_blocks" in WAYS[way] or "preempt_every_steps" in WAYS[way]:
        assert stats.num_preemptions > 0
    assert (stats.num_prefix_hits > 0) == WAYS[way].get("enable_prefix_caching", True)
    oracle = MtpOracle(half_right)
    for tokens, logits in longest_first(witness.seen):
        assert (logits - row_of(oracle, tokens)).abs().max() < TOLERANCE


computed: dict[tuple[int, ...], Tensor] = {}
"""What the oracle said of a text at every position; its beginnings are answered from it."""


def longest_first(seen: list[tuple[list[int], Tensor]]) -> Iterator[tuple[list[int], Tensor]]:
    computed.clear()
    yield from sorted(seen, key=lambda each: -len(each[0]))


def row_of(oracle: MtpOracle, tokens: list[int]) -> Tensor:
    for text, logits in computed.items():
        if list(text[: len(tokens)]) == tokens:
            return logits[len(tokens) - 2]
    logits = computed[tuple(tokens)] = oracle.first_guess_logits(tokens)
    return logits[-1]


def test_steps_that_fail_and_are_run_again_leave_every_guess_as_it_was(half_right: Path) -> None:
    llm = LLM(str(half_right), dtype="float32", **MTP, num_speculative_tokens=2)
    runner, num_calls = llm.engine._runner, itertools.count(1)
    witness, sample = Witness(runner.model), runner.sample

    def fail_now_and_then(logits: Tensor, batch: list[ScheduledSequence]) -> Any:
        if len(batch) > 1 and next(num_calls) % 2 == 0:  # one alone would end with an error
            raise RuntimeError("not this time")
        return sample(logits, batch)

    runner.sample = fail_now_and_then
    found = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert {request.outputs[0].finish_reason for request in found} == {"length"}
    oracle = MtpOracle(half_right)
    for tokens, logits in longest_first(witness.seen):
        assert (logits - row_of(oracle, tokens)).abs().max() < TOLERANCE


def test_a_layer_that_is_right_saves_steps(half_right: Path) -> None:
    plain, guessing = (LLM(str(half_right), dtype="float32", speculation=kind) for kind in (None, "mtp"))
    assert plain.generate(PROMPTS[0], GREEDY)[0].outputs == guessing.generate(PROMPTS[0], GREEDY)[0].outputs
    assert guessing.engine.step().stats.num_steps < plain.engine.step().stats.num_steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("min_tokens", [0, 12])
def test_a_stop_token_among_the_drafts_ends_the_answer_where_it_would_have(
    half_right: Path, dtype: str, min_tokens: int
) -> None:
    plain = LLM(str(half_right), dtype=dtype)
    guessing = LLM(str(half_right), dtype=dtype, **MTP, num_speculative_tokens=3)
    free = [request.outputs[0].token_ids for request in plain.generate(PROMPTS, GREEDY, use_tqdm=False)]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=24,
            ignore_eos=True,
            stop_token_ids=(tokens[5], tokens[14]),
            min_tokens=min_tokens,
        )
        for tokens in free
    ]
    expected, actual = (
        [
            (each.outputs[0].token_ids, each.outputs[0].stop_reason)
            for each in llm.generate(PROMPTS, params, use_tqdm=False)
        ]
        for llm in (plain, guessing)
    )
    assert actual == expected
    assert all(stop in each.stop_token_ids for each, (_, stop) in zip(params, actual, strict=True)) or min_tokens
    assert guessing.engine.step().stats.num_accepted_tokens > 0


def test_guesses_that_fail_cost_no_answer(half_right: Path, caplog: pytest.LogCaptureFixture) -> None:
    llm = LLM(str(half_right), dtype="float32", **MTP)

    def fail(wanted: object) -> list[list[int]]:
        raise RuntimeError("no guess today")

    llm.engine._runner.model.draft = fail
    plain = LLM(str(half_right), dtype="float32")
    assert llm.generate(PROMPTS[0], GREEDY)[0].outputs == plain.generate(PROMPTS[0], GREEDY)[0].outputs
    assert "drafts for 1 sequences failed: the next 32 steps have none" in caplog.text
    assert llm.engine.step().stats.num_draft_tokens == 0


def test_the_layer_is_read_only_if_it_is_to_guess_and_its_cache_is_counted(random_layer: Path) -> None:
    plain, guessing = runner_of(random_layer, speculation=None), runner_of(random_layer)
    assert plain.drafter is None
    assert "multi-token prediction" not in plain.load_report.bytes_by_kind
    extra = guessing.info.weight_bytes - plain.info.weight_bytes
    assert guessing.load_report.bytes_by_kind["multi-token prediction"] == extra > 0
    # A layer of latents, and three hidden states a block: the one before a draft, its token's and its own.
    per_block = 4 * (16 * (V3["kv_lora_rank"] + V3["qk_rope_head_dim"]) + 3 * V3["hidden_size"])
    assert guessing.info.kv_cache_bytes - plain.info.kv_cache_bytes == 32 * per_block


def drafts_after(runner: ModelRunner) -> Tensor:
    sequence = sequence_of(SHARED[:-1], len(SHARED) + 1)
    compute(runner, sequence, len(SHARED) - 1)
    sequence.token_ids.append(SHARED[-1])
    return runner.drafter.draft_logits([sequence])[0]


def test_an_fp8_checkpoints_layer_is_dequantised_and_an_int8_one_stays(tmp_path: Path) -> None:
    block = (16, 24)

    def round_trip(tensor: Tensor) -> Tensor:
        values, scale = to_fp8_blocks(tensor, block)
        return from_fp8_blocks(values, scale, block)

    def split(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        kept = {name: each for name, each in tensors.items() if "eh_proj" in name or "shared_head.head" in name}
        return {name: each for name, each in tensors.items() if name not in kept}, kept

    def to_fp8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        others, kept = split(tensors)
        return fp8_tensors(others, block) | kept

    def dequantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        others, kept = split(tensors)
        return {name: round_trip(each) if is_projection(name, each) else each for name, each in others.items()} | kept

    plain, fp8 = (write_mtp_checkpoint(tmp_path / name) for name in ("plain", "fp8"))
    rewrite(fp8, to_fp8, {**FP8, "weight_block_size": list(block)})
    rewrite(plain, dequantised, None)
    assert torch.equal(drafts_after(runner_of(fp8)), drafts_after(runner_of(plain)))
    in_int8 = runner_of(fp8, quantization="int8")
    layer = in_int8.model.transformer.mtp
    stored = {name for name, parameter in layer.named_parameters() if parameter.dtype is torch.int8}
    assert {"layer.attention.output.weight", "layer.feed_forward.experts.down"} <= stored
    assert "merge.weight" not in stored
    difference = drafts_after(in_int8) - drafts_after(runner_of(plain))
    assert 0 < difference.norm() / drafts_after(runner_of(plain)).norm() < 0.1


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (LAYER, rf"needs the tensors {LAYER}\*, and the checkpoint .* has none of them"),
        (f"{LAYER}hnorm", rf"the checkpoint lacks {LAYER}hnorm.weight"),
        (f"{LAYER}mlp.experts.3.up", rf"the checkpoint lacks {LAYER}mlp.experts.3.up_proj.weight"),
    ],
)
def test_a_layer_that_is_not_there_or_not_whole_is_refused_by_name(tmp_path: Path, part: str, message: str) -> None:
    folder = write_mtp_checkpoint(tmp_path)
    without(folder, part)
    with pytest.raises(ModelLoadError, match=message):
        runner_of(folder)
    runner_of(folder, speculation=None)


def test_tensors_of_the_layer_that_nobody_knows_are_named(tmp_path: Path) -> None:
    folder = write_mtp_checkpoint(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {f"{LAYER}fourth_norm.weight": torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=rf"does not use: {LAYER}fourth_norm.weight"):
        runner_of(folder)


def test_a_model_without_the_layer_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"LlamaForCausalLM, num_nextn_predict_layers=0\) has none: use specul"):
        runner_of(write_tiny_checkpoint(tmp_path))


def test_ranks_do_not_guess() -> None:
    with pytest.raises(InvalidRequestError, match="not supported with tensor_parallel_size=2: leave out one of"):
        EngineConfig(model="fake", speculation="mtp", tensor_parallel_size=2)


def test_guesses_stay_within_the_steps_budget_and_the_blocks_that_are_free() -> None:
    asked: list[list[int]] = []

    class Counting:
        def draft(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
            asked.append([count for _, count in wanted])
            return [[1] * count for _, count in wanted]

    sequences = [sequence_of(tokens, 0) for tokens in ([1, 2], [3, 4, 5], [6], [7, 8, 9])]
    method = ModelDrafts(Counting())
    num_free = dict(zip(map(id, sequences), (1, 2, 9, 9), strict=True))
    drafts = method.draft([(each, 2) for each in sequences], 4, lambda each, count: min(count, num_free[id(each)]))
    assert [len(each) for each in drafts] == [1, 2, 0, 1]  # of one token alone there is no hidden state before
    assert asked == [[1, 2, 0, 1]]
    assert method.draft([(sequences[0], 2)], 0, lambda _, count: count) == [[]]
    assert len(asked) == 1


def test_answers_of_adapters_do_not_change_either(half_right: Path, tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.self_attn.o_proj": (64, 80) for i in range(V3["num_hidden_layers"])}
    adapter = LoRARequest("a", str(write_tiny_adapter(tmp_path, shapes, targets=("o_proj",))))
    of_prompt = [adapter, None] * (len(PROMPTS) // 2)
    plain, guessing = (
        LLM(str(half_right), dtype="float32", enable_lora=True, speculation=kind) for kind in (None, "mtp")
    )
    expected, actual = (
        [each.outputs[0].token_ids for each in llm.generate(PROMPTS[: len(of_prompt)], GREEDY, of_prompt)]
        for llm in (plain, guessing)
    )
    assert actual == expected
    assert expected[0] != plain.generate(PROMPTS[0], GREEDY)[0].outputs[0].token_ids
    assert guessing.engine.step().stats.num_accepted_tokens > 0
