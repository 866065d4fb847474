"""How many guesses a step gets: what brings most tokens a second, found by trying, and never much less than none."""

import random
from collections.abc import Callable

import pytest

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.messages import EngineStats, Submit
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.speculation.methods import NgramDrafts
from deepseek_engine.speculation.payoff import Payoff
from deepseek_engine.speculation.speculator import Speculator
from deepseek_engine.testing.fake_launcher import FakeLauncher
from deepseek_engine.testing.fake_runner import build_fake_runner, expected_tokens

MOST = 5
Costs = Callable[[int, int], float]
"""Seconds of a step, by sequences and guesses of each."""


class Device:
    """Steps with guesses of sequences, each of which is as easily guessed as it is, taking a known time."""

    def __init__(self, costs: Costs, *acceptances: float) -> None:
        self.now_s, self.num_tokens = 0.0, 0.0
        self.costs, self.acceptances = costs, acceptances
        self.payoff = Payoff(MOST, lambda: self.now_s)
        self.payoff.pass_over()
        self.random = random.Random(0)

    def run(self, num_steps: int, num_sequences: int) -> list[int]:
        chosen: list[int] = []
        for _ in range(num_steps):
            count = self.payoff.choose(num_sequences, MOST)
            tokens = {index: 1 + self.num_right(index, count) for index in range(num_sequences)}
            self.now_s += self.costs(num_sequences, count)
            self.num_tokens += sum(tokens.values())
            self.payoff.note(count, tokens)
            chosen.append(count)
        return chosen

    def num_right(self, index: int, count: int) -> int:
        acceptance = self.acceptances[index % len(self.acceptances)]
        return next((place for place in range(count) if self.random.random() >= acceptance), count)

    def rate(self, num_sequences: int, count: int) -> float:
        """Of sequences that are alike."""
        tokens = num_sequences * sum(self.acceptances[0] ** place for place in range(count + 1))
        return tokens / self.costs(num_sequences, count)


def bound_by_weights(num_sequences: int, count: int) -> float:
    return 0.001


def bound_by_computing(num_sequences: int, count: int) -> float:
    return 1e-5 * num_sequences * (1 + count)


def without_overlap(num_sequences: int, count: int) -> float:
    """Guessing costs the host a fixed time, and each row a little."""
    return 0.001 + (0.0004 + 1e-5 * num_sequences * count if count else 0.0)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("costs", [bound_by_weights, bound_by_computing, without_overlap])
@pytest.mark.parametrize("num_sequences", [1, 32])
def test_what_is_chosen_comes_near_the_best_that_there_is(costs: Costs, acceptance: float, num_sequences: int) -> None:
    device = Device(costs, acceptance)
    device.run(5000, num_sequences)
    best = max(device.rate(num_sequences, count) for count in (0, 1, 2, MOST))
    assert device.num_tokens / device.now_s > 0.93 * best  # windows of 6 steps are noisy for one sequence
    assert device.num_tokens / device.now_s > 0.975 * device.rate(num_sequences, 0)


def test_fewer_sequences_get_guesses_where_many_do_not() -> None:
    """A step is bound by weights up to 16 rows."""
    device = Device(lambda num_sequences, count: max(16, num_sequences * (1 + count)) * 1e-4, 0.7)
    found: dict[int, int] = {}
    for num_sequences in (1, 64, 8):
        device.run(1000, num_sequences)
        chosen = device.run(300, num_sequences)
        found[num_sequences] = max(chosen, key=chosen.count)
    assert found == {1: MOST, 64: 0, 8: 1}


def test_guesses_come_back_when_the_text_begins_to_repeat_itself() -> None:
    device = Device(without_overlap, 0.0)
    assert device.run(4000, 2).count(0) > 3800
    device.acceptances = (0.9,)
    assert device.run(4000, 2).count(MOST) > 3500


def test_who_cannot_be_guessed_is_not_slowed_down_for_the_others() -> None:
    """A step with guesses takes twice as long; half of the sequences get four times the tokens, more than it costs."""
    device = Device(lambda num_sequences, count: 0.001 * (2 if count else 1), 1.0, 0.0)
    assert device.run(2000, 32).count(0) > 1850
    device.acceptances = (1.0, 1.0, 1.0, 0.0)
    assert device.run(2000, 32).count(MOST) > 1500


def test_a_step_that_hangs_by_chance_changes_nothing() -> None:
    device = Device(without_overlap, 0.9)
    device.run(500, 2)
    device.now_s += 1.0
    assert device.run(60, 2).count(MOST) >= 50


def decoding(num_sequences: int) -> list[ScheduledSequence]:
    batch: list[ScheduledSequence] = []
    for index in range(num_sequences):
        sequence = Sequence("r", index, [1, 2, 1, 2], SamplingParams(), 0, max_total_tokens=1000)
        sequence.num_computed_tokens = 3
        batch.append(ScheduledSequence(sequence, 1))
    return batch


def test_guesses_of_a_sequence_fall_with_the_batch_where_a_step_has_so_many_rows() -> None:
    speculator = Speculator(MOST, NgramDrafts(2, 4), max_rows=64, beside_prompts=False)
    planned = {count: speculator.plan(decoding(count)) for count in (1, 8, 16, 21, 32, 33, 200)}
    assert planned == {1: 5, 8: 5, 16: 3, 21: 2, 32: 1, 33: 0, 200: 0}
    assert (speculator.num_guesses, speculator.num_off_steps) == (0, 2)
    prompt = ScheduledSequence(Sequence("p", 0, [7] * 20, SamplingParams(), 0, max_total_tokens=100), 6)
    assert speculator.plan([*decoding(1), prompt]) == 0


@pytest.mark.parametrize("guess_s", [0.0, 1.0])
def test_steps_overlap_again_where_guesses_do_not_pay(guess_s: float) -> None:
    """The text of a vocabulary of two tokens is easily guessed; a step takes a second, or two if it has guesses."""
    config = EngineConfig(
        model="fake?vocab_size=2", num_kv_blocks=64, block_size=4, max_model_len=240, speculation="ngram", ngram_min=1,
        num_speculative_tokens=1,
    )  # fmt: skip
    runner = build_fake_runner(config)
    runner.launcher = FakeLauncher(runner)
    now_s = 0.0
    engine = Engine(config, runner, clock=lambda: now_s)
    engine.add_request(Submit("a", [1, 0, 1], SamplingParams(temperature=0.0, max_tokens=200)))
    answer: list[int] = []
    history: list[EngineStats] = []
    while engine.has_work:
        outputs = engine.step()
        had_guesses = outputs.stats.num_draft_tokens > (history[-1].num_draft_tokens if history else 0)
        now_s += 1.0 + (2 * guess_s if had_guesses else 0.0)
        history.append(outputs.stats)
        answer += [token_id for delta in outputs.deltas for token_id in delta.token_ids]
    assert answer == expected_tokens([1, 0, 1], 200, vocab_size=2)
    stats = history[-1]
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    assert stats.sync_points["speculation"] > 0
    if guess_s:
        assert stats.num_off_steps > stats.num_steps // 2
        assert stats.num_overlapped_steps > stats.num_steps // 2
    else:
        assert stats.num_off_steps < stats.num_steps // 4
