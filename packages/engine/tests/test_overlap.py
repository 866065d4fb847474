"""Two steps at a time on a runner that computes as late as it may: no answer changes, and nothing is left behind."""

import logging
from collections.abc import Sequence as Seq
from typing import Any

import pytest

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import EngineDeadError
from deepseek_engine.grammar.protocol import TokenMask
from deepseek_engine.grammar.source import GrammarSource, GrammarUse
from deepseek_engine.grammar.state import SequenceGrammar
from deepseek_engine.messages import Cancel, Delta, EmbedParams, Submit, ThinkingMarkers
from deepseek_engine.request import sampling_seed
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import PENDING_TOKEN_ID
from deepseek_engine.steps.overlap import PAUSE_STEPS
from deepseek_engine.testing.fake_launcher import FakeLauncher, FakeStep
from deepseek_engine.testing.fake_runner import FakeRunner, build_fake_runner, expected_tokens

PROMPT = [5, 6, 7, 8, 9]
POISON = 499


class Bench:
    """An engine on a fake runner that launches, and what it says."""

    def __init__(self, options: str = "", *, penalises_on_host: bool = False, **settings: Any) -> None:
        self.now_s = 0.0
        config = EngineConfig(
            **({"model": f"fake?{options}", "num_kv_blocks": 64, "max_model_len": 512, "block_size": 4} | settings)
        )
        self.runner: FakeRunner = build_fake_runner(config)
        self.launcher = FakeLauncher(self.runner, penalises_on_host=penalises_on_host)
        self.runner.launcher = self.launcher
        self.engine = Engine(config, self.runner, clock=lambda: self.now_s)
        self.answers: dict[str, list[int]] = {}
        self.ends: dict[str, Delta] = {}

    def submit(self, name: str, prompt: list[int], *, eos: tuple[int, ...] = (), **params: Any) -> None:
        fields = {"temperature": 0.0, "max_tokens": 8} | params
        self.engine.add_request(Submit(name, prompt, SamplingParams(**fields), eos_token_ids=eos))

    def step(self) -> tuple[Delta, ...]:
        deltas = self.engine.step().deltas
        self.engine._scheduler.check()
        for delta in deltas:
            name = delta.request_id + (f"/{delta.index}" if delta.index else "")
            assert name not in self.ends, "a delta after the last"
            self.answers.setdefault(name, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                self.ends[name] = delta
        return deltas

    def run(self) -> None:
        while self.engine.has_work:
            self.step()
        assert not self.engine.has_requests
        assert self.engine._scheduler.allocator.num_free == self.engine.info.num_blocks
        assert PENDING_TOKEN_ID not in [token_id for answer in self.answers.values() for token_id in answer]

    @property
    def num_overlapped(self) -> int:
        return self.engine._stats().num_overlapped_steps

    @property
    def sync_points(self) -> dict[str, int]:
        return {reason: number for reason, number in self.engine._stats().sync_points.items() if number}


def test_a_step_is_taken_up_while_the_next_one_is_under_way():
    bench = Bench()
    bench.submit("a", PROMPT, max_tokens=3)
    expected = expected_tokens(PROMPT, 3)
    assert bench.step() == ()
    assert bench.engine.has_work, "what is under way has to be taken up"
    taken = [[list(delta.token_ids) for delta in bench.step()] for _ in range(3)]
    assert taken == [[[token_id]] for token_id in expected]
    assert not bench.engine.has_work
    assert (bench.launcher.num_launched, bench.num_overlapped, bench.sync_points) == (3, 2, {})


def test_a_runner_without_a_launcher_computes_a_step_a_turn():
    bench = Bench()
    bench.runner.launcher = None
    bench.engine = Engine(EngineConfig(model="fake"), bench.runner)
    bench.submit("a", PROMPT, max_tokens=3)
    assert [len(bench.step()) for _ in range(3)] == [1, 1, 1]
    assert not bench.engine.has_work
    assert (bench.num_overlapped, bench.engine._stats().sync_points) == (0, {})


@pytest.mark.parametrize("place", range(9))
def test_a_stop_token_in_any_place_wastes_one_row_and_leaves_the_cache_right(place: int):
    """Blocks have four tokens, so that the wasted row falls on each of their slots."""
    expected = expected_tokens(PROMPT, 20)
    assert len(set(expected[:9])) == 9
    bench = Bench(num_kv_blocks=12)
    bench.submit("stops", PROMPT, max_tokens=20, eos=(expected[place],))
    bench.run()
    assert bench.answers["stops"] == expected[: place + 1]
    assert bench.ends["stops"].stop_token_id == expected[place]
    assert bench.launcher.num_launched == place + 2
    # Whatever it left in the prefix cache is used by these, and the second has its freed blocks in the meantime.
    whole = [*PROMPT, *expected[: place + 1]]
    bench.submit("goes on", [*whole, 1], max_tokens=6)
    bench.submit("other", [100, *whole], max_tokens=6)
    bench.run()
    assert bench.answers["goes on"] == expected_tokens([*whole, 1], 6)
    assert bench.answers["other"] == expected_tokens([100, *whole], 6)
    assert bench.ends["goes on"].num_cached_tokens == (len(whole) - 1) // 4 * 4


def test_max_tokens_are_foreseen_and_waste_nothing():
    bench = Bench()
    for name, max_tokens in (("a", 1), ("b", 2), ("c", 7)):
        bench.submit(name, [*PROMPT, max_tokens], max_tokens=max_tokens)
    bench.run()
    assert bench.launcher.num_launched == 7
    for name, max_tokens in (("a", 1), ("b", 2), ("c", 7)):
        assert bench.answers[name] == expected_tokens([*PROMPT, max_tokens], max_tokens)
        assert bench.ends[name].finish_reason == "length"


@pytest.mark.parametrize("num_kv_blocks", [16, 40, 200])
@pytest.mark.parametrize("preempt_every_steps", [None, 1, 2, 3])
@pytest.mark.parametrize("caching", [True, False])
def test_every_answer_is_the_same_alone_and_in_any_company(num_kv_blocks, preempt_every_steps, caching):
    bench = Bench(
        num_kv_blocks=num_kv_blocks, preempt_every_steps=preempt_every_steps, enable_prefix_caching=caching,
        max_num_batched_tokens=16, max_num_seqs=6, max_model_len=60,
    )  # fmt: skip
    prompts = {str(number): [*range(number % 3 * 9), number + 1] for number in range(10)}
    for number, (name, prompt) in enumerate(prompts.items()):
        bench.submit(name, prompt, max_tokens=30 - number, n=1 + number % 3, seed=number, temperature=1.0,
                     priority=number % 2)  # fmt: skip
    bench.run()
    for number, (name, prompt) in enumerate(prompts.items()):
        for index in range(1 + number % 3):
            answer = bench.answers[name + (f"/{index}" if index else "")]
            assert answer == expected_tokens(prompt, 30 - number, seed=sampling_seed(number, index))
    assert bench.num_overlapped > 50
    if preempt_every_steps or num_kv_blocks == 16:
        assert bench.engine._scheduler.num_preemptions > 0


def test_a_cancel_under_way_frees_blocks_at_once_and_the_next_owner_is_not_disturbed():
    bench = Bench(num_kv_blocks=5, max_model_len=20)
    bench.submit("a", list(range(16)), max_tokens=4)
    bench.submit("waits", list(range(50, 66)), max_tokens=4)
    bench.step()
    bench.step()
    bench.engine.inbox.append(Cancel("a"))
    deltas = bench.step()
    assert [(delta.request_id, delta.finish_reason, delta.token_ids) for delta in deltas] == [("a", "abort", ())]
    assert bench.engine._scheduler.num_running == 1, "the blocks are the other one's now"
    bench.run()
    assert bench.answers["waits"] == expected_tokens(list(range(50, 66)), 4)


def test_what_arrives_while_a_step_is_waited_for_goes_before_its_tokens():
    bench = Bench()
    for name in ("cancelled", "late", "goes on"):
        bench.submit(name, [*PROMPT, len(name)], max_tokens=50, deadline_s=5.0 if name == "late" else None)
    bench.step()
    forward = bench.runner.forward

    def slow_forward(batch):
        bench.engine.inbox.append(Cancel("cancelled"))
        bench.now_s = 6.0
        return forward(batch)

    bench.runner.forward = slow_forward
    deltas = {delta.request_id: delta for delta in bench.step()}
    for name, timed_out in (("cancelled", False), ("late", True)):
        assert (deltas[name].finish_reason, deltas[name].timed_out, deltas[name].token_ids) == ("abort", timed_out, ())
        assert deltas[name].num_prompt_tokens == 6, "the work is counted"
    bench.run()
    assert bench.answers["goes on"] == expected_tokens([*PROMPT, 7], 50)


def test_a_cancelled_prompt_reports_what_was_taken_up_and_not_what_is_under_way():
    bench = Bench(max_num_batched_tokens=32)
    bench.submit("a", list(range(100)))
    for _ in range(3):
        bench.step()
    bench.engine.cancel("a")
    bench.run()
    assert bench.ends["a"].num_prompt_tokens == 64, "of three chunks that were launched"


@pytest.mark.parametrize("place", range(6))
def test_who_ends_just_before_a_step_that_cannot_overlap_is_not_in_it(place: int):
    expected = expected_tokens(PROMPT, 8)
    bench = Bench()
    bench.submit("stops", PROMPT, eos=(expected[2],))
    for _ in range(place):
        bench.step()
    bench.submit("reads", [1, 2, 3], prompt_logprobs=0)
    sizes: list[int] = []
    run = bench.engine._computation.run
    bench.engine._computation.run = lambda batch: sizes.append(len(batch)) or run(batch)
    bench.run()
    assert bench.answers["stops"] == expected[:3]
    assert bench.answers["reads"] == expected_tokens([1, 2, 3], 8)
    assert sizes == [2 if place < 3 else 1]


def test_an_id_that_is_free_again_does_not_get_what_is_under_way_for_the_one_before():
    bench = Bench()
    bench.submit("a", PROMPT)
    bench.step()
    bench.engine.cancel("a")
    bench.submit("a", [1, 2])
    bench.ends.clear()
    assert [delta.finish_reason for delta in bench.step()] == ["abort"]
    bench.ends.clear()
    bench.run()
    assert bench.answers["a"] == expected_tokens([1, 2], 8)


def test_a_prompt_without_an_answer_ends_once_its_last_chunk_is_taken_up():
    bench = Bench(max_num_batched_tokens=32)
    bench.submit("a", list(range(100)), max_tokens=0)
    assert [bench.step() for _ in range(4)] == [()] * 4
    (delta,) = bench.step()
    assert (delta.finish_reason, delta.num_prompt_tokens) == ("length", 100)
    assert not bench.engine.has_work


class EveryToken:
    """A grammar that allows everything, and its matcher."""

    def matcher(self, stop_token_ids: frozenset[int]) -> "EveryToken":
        return self

    def next_mask(self, avoid: Seq[int]) -> TokenMask:
        return [-1] * 16

    def accept(self, token_id: int) -> bool:
        return True


@pytest.mark.parametrize("reason", ["grammar", "reading", "thinking", "penalties", "speculation"])
def test_what_depends_on_a_pending_token_waits_for_it_and_overlaps_again_afterwards(reason: str):
    bench = Bench(
        "vocab_size=4" if reason == "speculation" else "", penalises_on_host=reason == "penalties",
        speculation="ngram" if reason == "speculation" else None, ngram_min=1, adaptive_speculation=False,
    )  # fmt: skip
    vocab_size = 4 if reason == "speculation" else 512
    prompt = [token_id % vocab_size for token_id in PROMPT]
    bench.submit("before", prompt, max_tokens=30)
    for _ in range(3):
        bench.step()
    params = {"reading": {"prompt_logprobs": 0}, "penalties": {"presence_penalty": 1.0}}.get(reason, {})
    if reason == "thinking":
        params = {"thinking_token_budget": 3}
    special = Submit(
        "special", prompt, SamplingParams(temperature=0.0, max_tokens=8, **params),
        thinking=ThinkingMarkers((500,), is_open=True) if reason == "thinking" else None,
    )  # fmt: skip
    bench.engine.add_request(special)
    if reason == "grammar":
        use = GrammarUse(GrammarSource("regex", "a"))
        grammar = SequenceGrammar(EveryToken(), use, (), frozenset())
        bench.engine._book._requests["special"].sequences[0].grammar = grammar
    bench.run()
    assert bench.answers["before"] == expected_tokens(prompt, 30, vocab_size=vocab_size)
    expected = expected_tokens(prompt, 8, vocab_size=vocab_size)
    if reason == "thinking":
        expected = [*expected[:3], 500, *expected_tokens([*prompt, *expected[:3], 500], 4)]
    assert bench.answers["special"] == expected
    num_sync = bench.sync_points.pop(reason)
    assert num_sync == {"reading": 1, "thinking": 1}.get(reason, num_sync)
    if reason == "speculation":
        assert bench.num_overlapped > 0, "a sequence whose guesses were wrong has none for a while"
    else:
        assert num_sync <= 8
        assert bench.num_overlapped >= 20 - num_sync


def test_embeddings_are_read_by_themselves():
    bench = Bench(max_num_batched_tokens=32)
    params = SamplingParams(max_tokens=0)
    bench.engine.add_request(Submit("a", list(range(100)), params, embed=EmbedParams(pooling="last")))
    deltas = [delta for _ in range(5) for delta in bench.step()]
    assert [delta.embedding is not None for delta in deltas] == [True, False]
    assert not bench.engine.has_work
    assert bench.sync_points == {"reading": 1}


@pytest.mark.parametrize("budget", range(12))
def test_a_thinking_budget_is_kept_as_without_overlap(budget: int):
    answers = []
    for overlaps in (True, False):
        bench = Bench("vocab_size=3")
        if not overlaps:
            bench.engine = Engine(
                EngineConfig(model="fake"), build_fake_runner(EngineConfig(model="fake?vocab_size=3"))
            )
        params = SamplingParams(temperature=1.0, seed=1, n=3, max_tokens=60, thinking_token_budget=budget)
        bench.engine.add_request(Submit("a", [0, 1, 2], params, thinking=ThinkingMarkers((1, 0, 1), (0, 0))))
        bench.run()
        answers.append((bench.answers, {name: delta.num_reasoning_tokens for name, delta in bench.ends.items()}))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("failure", ["launch", "step"])
@pytest.mark.parametrize("place", range(6))
def test_a_failure_that_does_not_come_back_changes_nothing(caplog, failure, place: int):
    caplog.set_level(logging.CRITICAL)
    bench = Bench(max_num_batched_tokens=16, max_num_seqs=12, num_kv_blocks=400)
    prompts = {str(number): [*range(number * 5), number] for number in range(6)}
    for name, prompt in prompts.items():
        bench.submit(name, prompt, max_tokens=PAUSE_STEPS + 20, n=2)
    for _ in range(place):
        bench.step()
    bench.launcher.fails_next = failure
    bench.run()
    for name, prompt in prompts.items():
        expected = expected_tokens(prompt, PAUSE_STEPS + 20)
        assert bench.answers[name] == bench.answers[f"{name}/1"] == expected
    assert bench.sync_points == {"failure": PAUSE_STEPS}
    assert bench.engine._stats().num_failed_steps == 0
    assert bench.num_overlapped > 10


def test_one_bad_request_among_many_fails_alone(caplog):
    caplog.set_level(logging.ERROR)
    bench = Bench(f"fail_token={POISON}", num_kv_blocks=256)
    for number in range(12):
        bench.submit(str(number), [number, 7], max_tokens=6)
    bench.step()
    bench.submit("bad", [1, POISON])
    bench.run()
    assert f"token {POISON} breaks this model" in bench.ends["bad"].error
    for number in range(12):
        assert bench.answers[str(number)] == expected_tokens([number, 7], 6)
    assert bench.engine._stats().num_failed_steps == 1
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("memory_tokens", [1, 3, 7, 30])
def test_with_little_memory_every_answer_is_the_same(caplog, memory_tokens: int):
    caplog.set_level(logging.CRITICAL)
    bench = Bench(f"memory_tokens={memory_tokens}", num_kv_blocks=256)
    prompts = {str(number): [number + i for i in range(3 + 9 * number)] for number in range(6)}
    for name, prompt in prompts.items():
        bench.submit(name, prompt, max_tokens=20)
    bench.run()
    for name, prompt in prompts.items():
        assert bench.answers[name] == expected_tokens(prompt, 20)
    assert bench.engine._stats().num_oom_events == bench.runner.num_caches_freed > 0
    assert bench.sync_points["memory"] > 0


def test_a_batch_that_followed_a_failed_step_is_scheduled_anew(caplog):
    caplog.set_level(logging.CRITICAL)
    bench = Bench()
    for number in range(6):
        bench.submit(str(number), [number, 7])
    for _ in range(3):
        bench.step()

    def check_memory(batch):
        if len(batch) == 6:
            raise MemoryError

    # The step under way runs out of memory, so some of its sequences lose their blocks; the next batch waits for it.
    bench.runner._check_memory = check_memory
    bench.submit("reads", [1, 2, 3], prompt_logprobs=0)
    bench.run()
    for number in range(6):
        assert bench.answers[str(number)] == expected_tokens([number, 7], 8)
    assert bench.answers["reads"] == expected_tokens([1, 2, 3], 8)
    assert bench.engine._stats().num_failed_steps == 0


@pytest.mark.parametrize("failure", ["launch", "step", None])
def test_prompts_that_attend_in_both_directions_are_computed_whole(caplog, failure):
    caplog.set_level(logging.CRITICAL)
    bench = Bench(prompt_attention="bidirectional", preempt_every_steps=3, max_num_batched_tokens=40)
    prompts = {str(number): list(range(number, number + 20)) for number in range(6)}
    for name, prompt in prompts.items():
        bench.submit(name, prompt, max_tokens=20)
    bench.step()
    bench.launcher.fails_next = failure
    bench.run()
    assert bench.answers == {name: expected_tokens(prompt, 20) for name, prompt in prompts.items()}


def test_a_model_that_computes_nothing_any_more_ends_the_engine(caplog):
    caplog.set_level(logging.CRITICAL)
    bench = Bench(f"die_token={POISON}")
    bench.submit("good", [5, 6], max_tokens=20)
    bench.step()
    bench.submit("deadly", [POISON])
    with pytest.raises(EngineDeadError, match="not even one token can be computed"):
        bench.run()


def test_the_journal_says_which_step_is_waited_for():
    bench = Bench()
    bench.submit("first", PROMPT)
    bench.step()
    bench.submit("second", PROMPT)
    described: list[str] = []
    compute = bench.launcher.compute

    def describing(step: FakeStep):
        described.append(bench.engine.describe())
        return compute(step)

    bench.launcher.compute = describing
    turn = bench.engine.journal.turn
    bench.step()
    assert "phase=wait" in described[0]
    assert "id=first" in described[0], "the step that is waited for"
    assert "id=second" not in described[0], "launched, and behind it"
    assert bench.engine.journal.turn == turn + 3, "the turn, the launch and the wait"
    bench.run()
    totals = bench.engine.journal.totals()
    assert totals.phase_seconds["wait"] > 0
    assert sum(sum(kind.num_steps_in) for kind in totals.kinds.values()) == bench.launcher.num_launched
