"""Steps that fail: who computes alone goes on with the same tokens, whatever the failure was."""

import logging

import pytest

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import EngineDeadError
from deepseek_engine.grammar.source import GrammarSource, GrammarUse
from deepseek_engine.grammar.state import SequenceGrammar
from deepseek_engine.messages import Delta, Submit
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.steps.computation import MAX_SPLITS
from deepseek_engine.steps.memory import ran_out_of_memory
from deepseek_engine.testing.fake_runner import FakeRunner, build_fake_runner, expected_tokens

POISON = 499


def make(faults: str = f"fail_token={POISON}", **settings: object) -> tuple[Engine, FakeRunner]:
    config = EngineConfig(model=f"fake?{faults}", **({"num_kv_blocks": 256, "max_model_len": 256} | settings))
    runner = build_fake_runner(config)
    return Engine(config, runner), runner


def add(engine: Engine, name: str, prompt: list[int], **params: object) -> None:
    engine.add_request(Submit(name, prompt, SamplingParams(**({"temperature": 0.0, "max_tokens": 6} | params))))


def run(engine: Engine) -> dict[str, tuple[list[int], Delta]]:
    """Each answer's tokens and its last delta, under `name` or `name/index` of later answers."""
    answers: dict[str, tuple[list[int], Delta]] = {}
    while engine.has_work:
        for delta in engine.step().deltas:
            name = delta.request_id + (f"/{delta.index}" if delta.index else "")
            tokens, _ = answers.get(name, ([], delta))
            answers[name] = ([*tokens, *delta.token_ids], delta)
    engine._scheduler.check()
    assert engine._scheduler.allocator.num_free == engine.info.num_blocks
    return answers


def counted(runner: FakeRunner) -> list[int]:
    """How many sequences each forward computed, from now on."""
    sizes: list[int] = []
    forward = runner.forward

    def counting(batch):
        sizes.append(len(batch))
        return forward(batch)

    runner.forward = counting
    return sizes


@pytest.mark.parametrize("place", [0, 5, 15])
def test_one_bad_request_among_many_fails_alone(caplog, place):
    caplog.set_level(logging.ERROR)
    engine, runner = make()
    prompts = [[number, 7, 8] for number in range(16)]
    prompts[place] = [place, POISON]
    for number, prompt in enumerate(prompts):
        add(engine, str(number), prompt)
    sizes = counted(runner)
    answers = run(engine)
    for number, prompt in enumerate(prompts):
        tokens, last = answers[str(number)]
        if number == place:
            assert (tokens, last.finish_reason, last.error_param) == ([], "error", None)
            assert f"token {POISON} breaks this model" in last.error
        else:
            assert (tokens, last.finish_reason) == (expected_tokens(prompt, 6), "length")
    assert len(sizes) == 6 + 2 * 4, "six steps, and two runs for each time that 16 is halved"
    assert "Traceback" in caplog.text
    assert "1 of a step's 16 sequences" in caplog.text
    assert engine.step().stats.num_failed_steps == 1


def test_all_answers_of_a_bad_prompt_end_and_those_beside_it_go_on(caplog):
    caplog.set_level(logging.CRITICAL)
    engine, _ = make()
    add(engine, "bad", [1, POISON, 2], n=3)
    add(engine, "beside", [1, 2, 3])
    answers = run(engine)
    assert [answers[name][1].finish_reason for name in ("bad", "bad/1", "bad/2")] == ["error"] * 3
    assert answers["beside"][0] == expected_tokens([1, 2, 3], 6)


def test_blocks_that_others_share_stay_right_when_one_of_them_fails(caplog):
    caplog.set_level(logging.CRITICAL)
    engine, _ = make(block_size=4)
    shared = list(range(12))
    add(engine, "first", shared)
    run(engine)
    for name, end in (("a", 100), ("bad", POISON), ("b", 101)):
        add(engine, name, [*shared, end])
    answers = run(engine)
    assert answers["bad"][1].finish_reason == "error"
    for name, end in (("a", 100), ("b", 101)):
        assert answers[name][0] == expected_tokens([*shared, end], 6)
        assert answers[name][1].num_cached_tokens == 12


def test_readings_and_drafts_are_the_same_when_a_step_is_run_again(caplog):
    caplog.set_level(logging.CRITICAL)
    loop = [1, 2, 3] * 5
    engine, runner = make("vocab_size=2&fail_token=7", speculation="ngram", ngram_min=1, adaptive_speculation=False)
    plain, _ = make("vocab_size=2")
    forward = runner.forward
    failures = iter([True, False] * 1000)

    def now_and_then(batch):
        logits = forward(batch)
        if len(batch) > 1 and next(failures):
            raise RuntimeError("not together")
        return logits

    runner.forward = now_and_then
    for each in (engine, plain):
        add(each, "drafts", [token % 2 for token in loop], max_tokens=30)
        add(each, "reads", [1, 0, 1, 1], prompt_logprobs=0)
    answers, expected = run(engine), run(plain)
    assert {name: tokens for name, (tokens, _) in answers.items()} == {
        name: tokens for name, (tokens, _) in expected.items()
    }
    assert engine.step().stats.num_accepted_tokens > 0


def test_prompt_logprobs_are_reported_once_beside_a_failure(caplog):
    caplog.set_level(logging.CRITICAL)
    engine, _ = make()
    add(engine, "reads", [4, 5, 6], prompt_logprobs=0)
    add(engine, "bad", [POISON])
    logprobs = [entry for delta in engine.step().deltas for entry in delta.prompt_logprobs]
    assert [entry.logprob for entry in logprobs] == [-5.0, -6.0]
    run(engine)


def test_a_failure_that_does_not_come_back_ends_nobody(caplog):
    caplog.set_level(logging.CRITICAL)
    engine, runner = make("")
    sample = runner.sample
    runs = iter([False, True])

    def fails_once(logits, batch):
        if next(runs, True):
            return sample(logits, batch)
        raise ValueError("a sampler's mistake")

    runner.sample = fails_once
    for name in ("a", "b"):
        add(engine, name, [5, 6])
    assert {tuple(tokens) for tokens, _ in run(engine).values()} == {tuple(expected_tokens([5, 6], 6))}


def test_the_number_of_runs_is_bounded_however_many_are_bad(caplog):
    caplog.set_level(logging.CRITICAL)
    engine, runner = make(max_num_seqs=256, max_num_batched_tokens=1024, num_kv_blocks=512)
    for number in range(256):
        add(engine, str(number), [number, POISON])
    sizes = counted(runner)
    engine.step()
    assert len(sizes) == 1 + 2 * MAX_SPLITS + 1, "the batch, its parts, and a token of nobody's"
    assert not engine.has_requests


def test_bad_requests_in_a_row_do_not_end_the_engine(caplog):
    caplog.set_level(logging.CRITICAL)
    engine, _ = make()
    for number in range(4):
        add(engine, str(number), [POISON])
        assert run(engine)[str(number)][1].finish_reason == "error"
    add(engine, "good", [5, 6])
    assert run(engine)["good"][0] == expected_tokens([5, 6], 6)


def test_a_model_that_computes_nothing_any_more_ends_the_engine(caplog):
    caplog.set_level(logging.CRITICAL)
    engine, _ = make(f"die_token={POISON}")
    add(engine, "good", [5, 6])
    engine.step()
    add(engine, "deadly", [POISON])
    with pytest.raises(EngineDeadError, match="not even one token can be computed"):
        run(engine)


class FailingMatcher:
    """A grammar and its matcher, of which one method raises."""

    def __init__(self, at):
        self.at = at

    def matcher(self, stop_token_ids):
        return self

    def next_mask(self, avoid):
        if self.at == "mask":
            raise RuntimeError("no mask")
        return [-1]

    def accept(self, token_id):
        if self.at == "accept":
            raise RuntimeError("no place")
        return True


@pytest.mark.parametrize("at", ["mask", "accept"])
def test_what_a_grammar_raises_ends_only_its_own_answer(caplog, at):
    caplog.set_level(logging.CRITICAL)
    engine, _ = make("")
    add(engine, "a", [5, 6])
    add(engine, "constrained", [7, 8])
    use = GrammarUse(GrammarSource("regex", "a"))
    engine._book._requests["constrained"].sequences[0].grammar = SequenceGrammar(
        FailingMatcher(at), use, (), frozenset()
    )
    answers = run(engine)
    assert answers["a"][0] == expected_tokens([5, 6], 6)
    tokens, last = answers["constrained"]
    assert (tokens, last.finish_reason) == ([], "error")
    assert "RuntimeError('no " in last.error


@pytest.mark.parametrize("memory_tokens", [1, 2, 7, 30, 100])
@pytest.mark.parametrize("speculation", [None, "ngram"])
def test_with_little_memory_every_answer_is_the_same(caplog, memory_tokens, speculation):
    caplog.set_level(logging.WARNING)
    engine, runner = make(f"vocab_size=4&memory_tokens={memory_tokens}", speculation=speculation, ngram_min=1)
    prompts = {str(number): [(number + i) % 4 for i in range(3 + 9 * number)] for number in range(8)}
    for name, prompt in prompts.items():
        add(engine, name, prompt, max_tokens=20)
    answers = run(engine)
    for name, prompt in prompts.items():
        tokens, last = answers[name]
        assert (tokens, last.finish_reason) == (expected_tokens(prompt, 20, vocab_size=4), "length")
    stats = engine.step().stats
    assert stats.num_oom_events > 0
    assert runner.num_caches_freed == stats.num_oom_events == caplog.text.count("memory ran out in a step of")
    assert stats.num_failed_steps == 0


def test_the_step_budget_recovers_once_there_is_memory_again(caplog):
    caplog.set_level(logging.CRITICAL)
    engine, runner = make("memory_tokens=8", max_num_batched_tokens=64)
    add(engine, "a", [1] * 60, max_tokens=100)
    stats = engine.step().stats
    assert stats.max_step_tokens == 30
    runner._check_memory = lambda batch: None
    while engine.has_work:
        stats = engine.step().stats
    assert 30 < stats.max_step_tokens <= 64


def test_who_needs_too_much_memory_alone_ends_and_the_others_go_on(caplog):
    caplog.set_level(logging.CRITICAL)
    engine, runner = make("")
    forward = runner.forward

    def hungry(batch):
        if any(scheduled.sequence.request_id == "hungry" for scheduled in batch):
            raise MemoryError
        return forward(batch)

    runner.forward = hungry
    for name in ("a", "hungry", "b"):
        add(engine, name, [5, 6, 7])
    answers = run(engine)
    assert answers["hungry"][1].finish_reason == "error"
    assert "MemoryError" in answers["hungry"][1].error
    assert answers["a"][0] == answers["b"][0] == expected_tokens([5, 6, 7], 6)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("CUDA"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_a_lack_of_memory(error, expected):
    assert ran_out_of_memory(error) is expected
