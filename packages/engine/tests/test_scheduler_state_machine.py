"""Random submits, cancels, failures and steps: the real engine with a fake model that notices any block mix-up.

FUZZ_SCHEDULER_STEPS makes it go on for so many steps, in rounds with a seed each: `nox -s fuzz_scheduler`.
"""

import os
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.messages import Cancel, Delta, Submit, Work
from deepseek_engine.request import sampling_seed
from deepseek_engine.runner_protocol import RunnerInfo
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence
from deepseek_engine.testing.fake_launcher import FakeLauncher
from deepseek_engine.testing.fake_runner import FakeRunner, expected_tokens

MIN_STEPS = 10_000
MAX_ROUNDS_FOR_RARE = 4
VOCAB_SIZE = 16  # small, so that stop tokens really come up
BLOCK_SIZE = 4

driven = {
    "steps": 0, "preemptions": 0, "forks": 0, "cache_hits": 0, "errors": 0, "aborts": 0, "complete": 0,
    "drafts": 0, "accepted_drafts": 0, "out_of_memory": 0, "failed_steps": 0, "overlapped": 0, "failed_overlaps": 0,
    "preempted_overlaps": 0,
}  # fmt: skip


class InterferingRunner(FakeRunner):
    """Things happen while it computes: messages arrive, it breaks by chance or by what it computes, memory runs out."""

    def __init__(self, info: RunnerInfo) -> None:
        super().__init__(info)
        self.arrives_meanwhile: list[Work] = []
        self.inbox: Seq[Work] | None = None
        self.is_broken = False
        self.poisoned: set[str] = set()
        self.computed_alone: set[str] = set()
        self.memory_tokens = 1000

    def forward(self, batch: Seq[ScheduledSequence]) -> list[bytes]:
        if sum(s.num_new_tokens + len(s.draft_token_ids) for s in batch) > self.memory_tokens:
            raise MemoryError
        logits = super().forward(batch)
        assert self.inbox is not None
        self.inbox.extend(self.arrives_meanwhile)
        self.arrives_meanwhile.clear()
        if self.is_broken:
            self.is_broken = False
            if len(batch) == 1:
                self.computed_alone.add(batch[0].sequence.request_id)
            raise RuntimeError("broken on purpose")
        if any(scheduled.sequence.request_id in self.poisoned for scheduled in batch):
            raise RuntimeError("poisoned")
        return logits


@dataclass
class Answer:
    submit: Submit
    index: int
    token_ids: list[int] = field(default_factory=list)
    last: Delta | None = None

    def take(self, delta: Delta) -> None:
        assert self.last is None or self.last.finish_reason is None, "a delta after the last"
        if self.last is not None:
            assert delta.num_prompt_tokens >= self.last.num_prompt_tokens, "billed work shrank"
        assert 0 <= delta.num_cached_tokens <= delta.num_prompt_tokens <= len(self.submit.prompt_token_ids)
        assert delta.num_prompt_tokens == len(self.submit.prompt_token_ids) or not delta.token_ids
        self.token_ids += delta.token_ids
        self.last = delta

    def expected(self) -> tuple[list[int], str]:
        """What the model says to this prompt when nothing else is going on."""
        params = self.submit.params
        seed = None if params.is_greedy else sampling_seed(params.seed, self.index)
        token_ids = expected_tokens(self.submit.prompt_token_ids, params.max_tokens, seed=seed, vocab_size=VOCAB_SIZE)
        for position, token_id in enumerate(token_ids):
            if token_id in self.submit.eos_token_ids and position >= params.min_tokens:
                return token_ids[: position + 1], "stop"
        return token_ids, "length"

    def check(self, may_fail: set[str]) -> None:
        assert self.last is not None
        assert self.last.finish_reason is not None, "an answer never ended"
        token_ids, finish_reason = self.expected()
        assert self.last.finish_reason != "error" or self.submit.request_id in may_fail, "another one's failure"
        if self.last.finish_reason in ("abort", "error"):
            assert self.token_ids == token_ids[: len(self.token_ids)]
        else:
            assert (self.token_ids, self.last.finish_reason) == (token_ids, finish_reason)
            driven["complete"] += 1
            driven["cache_hits"] += self.last.num_cached_tokens > 0
        driven["aborts"] += self.last.finish_reason == "abort"
        driven["errors"] += self.last.finish_reason == "error"


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(10, 24),
        max_num_seqs=st.integers(1, 6),
        extra_budget=st.integers(0, 12),
        caching=st.booleans(),
        mode=st.sampled_from(
            ("plain", "ngram", "ngram", "ngram", "ngram overlap", "calm overlap", "overlap", "overlap")
        ),
        preempt_every_steps=st.sampled_from((None, None, None, 1, 2, 5)),
    )
    def start(
        self,
        num_blocks: int,
        max_num_seqs: int,
        extra_budget: int,
        caching: bool,
        mode: str,
        preempt_every_steps: int | None,
    ) -> None:
        config = EngineConfig(
            model="fake",
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + extra_budget,
            enable_prefix_caching=caching,
            speculation="ngram" if mode.startswith("ngram") else None,
            preempt_every_steps=preempt_every_steps,
            priority_ageing_steps=5,
            num_speculative_tokens=6,  # more than a block
            ngram_min=1,
        )
        info = RunnerInfo(
            max_model_len=BLOCK_SIZE * 10,
            vocab_size=VOCAB_SIZE,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            dtype="float32",
            device="cpu",
            weight_bytes=0,
            kv_cache_bytes=0,
        )
        self.runner = InterferingRunner(info)
        # What goes wrong stops the overlap for a while, which would be for most of a short run.
        self.is_calm = mode == "calm overlap"
        if mode.endswith("overlap"):
            self.runner.launcher = FakeLauncher(self.runner)
        self.engine = Engine(config, self.runner, clock=count().__next__)
        self.runner.inbox = self.engine.inbox
        self.answers: dict[tuple[str, int], Answer] = {}
        self.num_requests = 0

    @rule(
        beginning=st.sampled_from(([1] * 8, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [])),
        length=st.integers(0, 14),
        end=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8),
        n=st.sampled_from((1, 1, 1, 2, 4)),
        max_tokens=st.integers(1, 16),
        min_tokens=st.integers(0, 4),
        temperature=st.sampled_from((0.0, 1.0)),
        seed=st.integers(0, 3),
        has_eos=st.booleans(),
        salt=st.sampled_from(("", "", "a")),
        priority=st.sampled_from((0, 0, 0, 1, -2)),
        meanwhile=st.booleans(),
        odds=st.integers(0, 11),
    )
    def submit(
        self,
        beginning,
        length,
        end,
        n,
        max_tokens,
        min_tokens,
        temperature,
        seed,
        has_eos,
        salt,
        priority,
        meanwhile,
        odds,
    ):
        params = SamplingParams(
            n=n,
            max_tokens=max_tokens,
            min_tokens=min(min_tokens, max_tokens),
            temperature=temperature,
            seed=seed,
            priority=priority,
        )
        request_id = str(self.num_requests)
        self.num_requests += 1
        if odds == 0 and not self.is_calm:
            self.runner.poisoned.add(request_id)
        submit = Submit(request_id, beginning[:length] + end, params, (3,) if has_eos else (), salt)
        for index in range(n):
            self.answers[request_id, index] = Answer(submit, index)
        driven["forks"] += n - 1
        self._send(submit, meanwhile=meanwhile)

    @precondition(lambda self: self.num_requests)
    @rule(data=st.data(), whole=st.booleans(), meanwhile=st.booleans())
    def cancel(self, data: st.DataObject, whole: bool, meanwhile: bool) -> None:
        live = [key for key, answer in self.answers.items() if answer.last is None or not answer.last.finish_reason]
        request_id, index = data.draw(st.sampled_from(live or list(self.answers)))
        self._send(Cancel(request_id, None if whole else index), meanwhile=meanwhile)

    @rule(odds=st.integers(0, 7))
    def break_once(self, odds: int) -> None:
        self.runner.is_broken = odds == 0 and not self.is_calm

    @precondition(lambda self: self.runner.launcher is not None and not self.is_calm)
    @rule(failure=st.sampled_from(("launch", "step", None)))
    def fail_an_overlapped_step(self, failure: Literal["launch", "step"] | None) -> None:
        assert self.runner.launcher is not None
        self.runner.launcher.fails_next = failure
        driven["failed_overlaps"] += failure is not None

    @rule(memory_tokens=st.sampled_from((1, 2, 5, 1000, 1000)))
    def resize_memory(self, memory_tokens: int) -> None:
        self.runner.memory_tokens = 1000 if self.is_calm else memory_tokens

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            if self.engine.has_work:
                self._step()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for _ in range(5000):
                if not self.engine.has_work and not self.runner.arrives_meanwhile:
                    break
                self.engine.inbox.extend(self.runner.arrives_meanwhile)
                self.runner.arrives_meanwhile.clear()
                self._step()
            assert not self.engine.has_work, "the engine does not come to an end"
            for answer in self.answers.values():
                answer.check(self.runner.poisoned | self.runner.computed_alone)
            scheduler = self.engine._scheduler
            assert scheduler.allocator.num_free == scheduler.allocator.num_blocks
            assert not self.engine.has_requests
            driven["preemptions"] += scheduler.num_preemptions
            stats = self.engine.step().stats
            driven["drafts"] += stats.num_draft_tokens
            driven["accepted_drafts"] += stats.num_accepted_tokens
            driven["out_of_memory"] += stats.num_oom_events
            driven["failed_steps"] += stats.num_failed_steps
            driven["overlapped"] += stats.num_overlapped_steps
            driven["preempted_overlaps"] += scheduler.num_preemptions if stats.num_overlapped_steps else 0

    def _send(self, message: Work, *, meanwhile: bool) -> None:
        (self.runner.arrives_meanwhile if meanwhile else self.engine.inbox).append(message)

    def _step(self) -> None:
        scheduler = self.engine._scheduler
        outputs = self.engine.step()
        driven["steps"] += 1
        scheduler.check()
        for delta in outputs.deltas:
            self.answers[delta.request_id, delta.index].take(delta)


def test_every_answer_is_the_models_own_whatever_happens_around_it(caplog, capsys):
    caplog.set_level("CRITICAL")
    driven.update(dict.fromkeys(driven, 0))
    wanted = int(os.environ.get("FUZZ_SCHEDULER_STEPS", MIN_STEPS))
    started = time.monotonic()
    for round_number in count():
        run_state_machine_as_test(
            with_seed(round_number)(EngineMachine),
            settings=settings(
                max_examples=400,
                stateful_step_count=40,
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
        with capsys.disabled():
            if wanted > MIN_STEPS:
                print(f"\nround {round_number}, {time.monotonic() - started:.0f} s: {driven}", flush=True)  # noqa: T201 - hours need a sign of life
        # What a seed draws depends on what ran before it: the rarest event may take a round more.
        if driven["steps"] >= wanted and (min(driven.values()) >= 100 or round_number >= MAX_ROUNDS_FOR_RARE):
            break
    assert min(driven.values()) >= 100, driven  # each kind of event was really there
