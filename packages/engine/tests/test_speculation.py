"""N-gram speculation: the guesses are those of their definition, and no answer changes by them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import InvalidRequestError
from deepseek_engine.messages import Submit
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.speculation.methods import NgramDrafts
from deepseek_engine.speculation.ngram import MAX_CANDIDATES, NgramIndex
from deepseek_engine.speculation.speculator import FIRST_PAUSE_TOKENS, Speculator
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.fake_runner import build_fake_runner, expected_tokens

NGRAM = {"speculation": "ngram", "ngram_min": 1, "adaptive_speculation": False}


def guess_by_definition(tokens: list[int], min_n: int, max_n: int, count: int) -> list[int]:
    """The latest of the longest agreements among the latest few places, continued as a loop if it runs out."""
    places = [end for end in range(min_n, len(tokens)) if tokens[end - min_n : end] == tokens[-min_n:]]
    best, best_length = -1, 0
    for end in reversed(places[-MAX_CANDIDATES:]):
        length = min_n
        while length < min(max_n, end) and tokens[end - length - 1] == tokens[-length - 1]:
            length += 1
        if length > best_length:
            best, best_length = end, length
    if best < 0:
        return []
    text = list(tokens)
    for at in range(best, best + count):
        text.append(text[at])
    return text[len(tokens) :]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=20),
    min_n=st.integers(1, 3),
    more=st.integers(0, 3),
    count=st.integers(1, 8),
)
def test_a_guess_is_what_followed_the_longest_latest_agreement(
    tokens: list[int], cuts: list[int], min_n: int, more: int, count: int
) -> None:
    index, length = NgramIndex(min_n, min_n + more), 0
    for cut in cuts:
        length = min(length + cut, len(tokens))
        expected = guess_by_definition(tokens[:length], min_n, min_n + more, count) if length > min_n else []
        assert index.propose(tokens[:length], count) == expected


def test_a_guess_costs_no_more_after_a_long_text_than_after_a_short_one() -> None:
    class CountingList(list):
        reads = 0

        def __getitem__(self, key):
            CountingList.reads += 1
            return super().__getitem__(key)

    index, tokens = NgramIndex(2, 4), CountingList([1] * 5000)
    index.propose(tokens, 5)
    tokens.append(1)
    CountingList.reads = 0
    assert index.propose(tokens, 5) == [1] * 5
    assert CountingList.reads < 10 * MAX_CANDIDATES


def guessing(num_tokens: int) -> Speculator:
    return Speculator(num_tokens, NgramDrafts(1, 2))


def unlimited(sequence: Sequence, num_tokens: int) -> int:
    return num_tokens


def decoding(tokens: list[int], **params: object) -> Sequence:
    sequence = Sequence("r", 0, tokens, SamplingParams(**params), 0, max_total_tokens=10_000)
    sequence.num_computed_tokens = len(tokens) - 1
    return sequence


def drafts_of(speculator: Speculator, sequence: Sequence) -> tuple[int, ...]:
    sequence.num_computed_tokens = len(sequence.token_ids) - 1
    batch = [ScheduledSequence(sequence, 1)]
    return speculator.add_drafts(batch, speculator.plan(batch), 1000, unlimited)[0].draft_token_ids


def test_a_sequence_whose_guesses_are_wrong_pauses_for_longer_each_time() -> None:
    speculator, sequence = guessing(4), decoding([1, 2, 3, 1])
    pauses: list[int] = []
    for _ in range(4):
        while drafts := drafts_of(speculator, sequence):
            sequence.token_ids.append(1)
            speculator.observe(sequence, len(drafts), 0)
        start = len(sequence.token_ids)
        while not drafts_of(speculator, sequence):
            sequence.token_ids.append(1)
        pauses.append(len(sequence.token_ids) - start)
    assert pauses == [FIRST_PAUSE_TOKENS * 2**i for i in range(4)]


def test_a_sequence_whose_guesses_are_right_never_pauses() -> None:
    speculator, sequence = guessing(4), decoding([1, 2, 3] * 3)
    for _ in range(50):
        drafts = drafts_of(speculator, sequence)
        assert len(drafts) == 4
        sequence.token_ids += drafts
        speculator.observe(sequence, 4, 4)
    assert (speculator.num_draft_tokens, speculator.num_accepted_tokens) == (200, 200)


def test_prompts_come_before_guesses_in_a_steps_budget() -> None:
    batch = [ScheduledSequence(decoding([1, 2] * 5), 1), ScheduledSequence(decoding([1, 2] * 5), 1)]
    prompt = Sequence("p", 0, [7] * 20, SamplingParams(), 0, max_total_tokens=100)
    planned = guessing(4).add_drafts([*batch, ScheduledSequence(prompt, 6)], 4, 10, unlimited)
    assert [len(scheduled.draft_token_ids) for scheduled in planned] == [2, 0, 0]


@pytest.mark.parametrize("penalty", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_a_sequence_with_penalties_gets_no_drafts(penalty: str) -> None:
    assert drafts_of(guessing(4), decoding([1, 2] * 5, **{penalty: 0.5})) == ()


def test_drafts_take_no_block_from_anyone() -> None:
    config = EngineConfig(
        model="fake?vocab_size=2", num_kv_blocks=6, block_size=4, max_model_len=24, num_speculative_tokens=8,
        enable_prefix_caching=False, **NGRAM,
    )  # fmt: skip
    engine = Engine(config, build_fake_runner(config))
    for index, prompt in enumerate(([1, 0, 1], [0, 0, 1])):
        engine.add_request(Submit(str(index), prompt, SamplingParams(temperature=0.0, max_tokens=9)))
    answers: dict[str, list[int]] = {"0": [], "1": []}
    while engine.has_work:
        outputs = engine.step()
        engine._scheduler.check()
        for delta in outputs.deltas:
            answers[delta.request_id] += delta.token_ids
    assert outputs.stats.num_draft_tokens > 0
    assert outputs.stats.num_preemptions == 0
    assert answers == {
        "0": expected_tokens([1, 0, 1], 9, vocab_size=2),
        "1": expected_tokens([0, 0, 1], 9, vocab_size=2),
    }


LOOP = {"prompt_token_ids": [*b"one two three one two three one two "]}
PROMPTS = [LOOP, *({"prompt_token_ids": [(7 * i + j * j) % 256 for j in range(5 + 9 * i)]} for i in range(7))]
REQUESTS = {
    "greedy": {"temperature": 0.0},
    "greedy with logprobs": {"temperature": 0.0, "logprobs": 2},
    "greedy with a bias": {"temperature": 0.0, "logit_bias": {17: 3.0}},
    "greedy with penalties": {"temperature": 0.0, "repetition_penalty": 1.2},
    "seeded": {"temperature": 0.3, "seed": 3},
    "seeded nucleus": {"temperature": 0.4, "seed": 4, "top_p": 0.8, "min_p": 0.01},
    "several answers": {"temperature": 0.3, "seed": 5, "n": 3},
    "one token": {"temperature": 0.0, "max_tokens": 1},
    "two tokens": {"temperature": 0.0, "max_tokens": 2},
}


@pytest.fixture(scope="module", params=["llama", "moe"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = TinyModel() if request.param == "llama" else TINY_MOE
    return write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), shape)


def test_no_answer_changes_by_speculation_and_fewer_steps_are_taken(checkpoint: Path) -> None:
    plain = LLM(str(checkpoint), dtype="float32")
    guessing = LLM(str(checkpoint), dtype="float32", **NGRAM, num_speculative_tokens=4, ngram_max=3)
    params = [SamplingParams(**({"max_tokens": 48, "ignore_eos": True} | fields)) for fields in REQUESTS.values()]
    for prompt in PROMPTS[:3]:
        expected = [request.outputs for request in plain.generate([prompt] * len(params), params)]
        actual = [request.outputs for request in guessing.generate([prompt] * len(params), params)]
        for name, one, other in zip(REQUESTS, expected, actual, strict=True):
            assert [(a.token_ids, a.finish_reason) for a in other] == [(a.token_ids, a.finish_reason) for a in one], (
                name
            )
            for a, b in zip(one, other, strict=True):
                for entry, same in zip(a.logprobs or (), b.logprobs or (), strict=True):
                    assert same.logprob == pytest.approx(entry.logprob, abs=1e-4)
                    assert [top.token_id for top in same.top] == [top.token_id for top in entry.top]
    before, after = plain.engine.step().stats, guessing.engine.step().stats
    assert 0 < after.num_accepted_tokens <= after.num_draft_tokens
    assert after.num_steps < before.num_steps


@pytest.mark.parametrize("min_tokens", [0, 12])
def test_a_stop_token_among_the_drafts_ends_the_answer_where_it_would_have(checkpoint: Path, min_tokens: int) -> None:
    plain = LLM(str(checkpoint), dtype="float32")
    guessing = LLM(str(checkpoint), dtype="float32", **NGRAM)
    for prompt in PROMPTS:
        free = plain.generate(prompt, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True))[0].outputs[0]
        for stop in {free.token_ids[8], free.token_ids[20], free.token_ids[-1]}:
            params = SamplingParams(
                temperature=0.0, max_tokens=40, ignore_eos=True, stop_token_ids=(stop,), min_tokens=min_tokens
            )
            one, other = (llm.generate(prompt, params)[0].outputs[0] for llm in (plain, guessing))
            assert (other.token_ids, other.finish_reason, other.stop_reason) == (
                one.token_ids, one.finish_reason, one.stop_reason,
            )  # fmt: skip
    assert guessing.engine.step().stats.num_accepted_tokens > 0


def test_drafts_that_were_wrong_leave_nothing_in_the_prefix_cache(checkpoint: Path) -> None:
    plain = LLM(str(checkpoint), dtype="float32", enable_prefix_caching=False)
    guessing = LLM(str(checkpoint), dtype="float32", **NGRAM, num_speculative_tokens=20)
    greedy = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    for prompt in PROMPTS[:3]:
        first = guessing.generate(prompt, greedy)[0].outputs[0].token_ids
        # A second turn over the whole first one reads its blocks from the cache.
        second = {"prompt_token_ids": prompt["prompt_token_ids"] + first + [65, 66]}
        output = guessing.generate(second, greedy)[0]
        assert output.num_cached_tokens > len(prompt["prompt_token_ids"])
        assert output.outputs[0].token_ids == plain.generate(second, greedy)[0].outputs[0].token_ids


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"speculation": "eagle"}, "speculation"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens"),
        ({"num_speculative_tokens": 33}, "num_speculative_tokens"),
        ({"ngram_min": 5}, "ngram_min"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        EngineConfig(model="fake", **settings)
    assert caught.value.param == param
