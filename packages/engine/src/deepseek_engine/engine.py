"""The engine: requests in, deltas out. One `step()` is one turn of the loop, and the whole of it is on this page."""

import logging
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

from deepseek_engine.answers import Answers
from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import AdapterError, EngineDeadError, EngineError, GrammarError, InvalidRequestError
from deepseek_engine.grammar.desk import GrammarDesk
from deepseek_engine.grammar.store import GrammarStore
from deepseek_engine.lora.pool import AdapterPool
from deepseek_engine.messages import (
    AdapterInfo,
    AdapterReply,
    Cancel,
    EngineStats,
    LoadAdapter,
    StepOutputs,
    Submit,
    UnloadAdapter,
    Work,
)
from deepseek_engine.request import Request, build_request
from deepseek_engine.request_book import RequestBook, param_of
from deepseek_engine.runner_protocol import Runner
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.scheduler import Scheduler
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.speculation.speculator import build_speculator
from deepseek_engine.steps.computation import Computation
from deepseek_engine.steps.journal import StepJournal
from deepseek_engine.steps.launched_rows import take_back
from deepseek_engine.steps.overlap import Overlap
from deepseek_engine.steps.report import describe_core

logger = logging.getLogger(__name__)


class Engine:
    """Runs all requests together on one runner. Not thread-safe, but `inbox` may be filled from another thread.

    Attributes:
        inbox: submits and cancels that the next step takes up; cancels also take effect in the middle of a step.
        info: what the runner has loaded.
        adapters: the LoRA adapters that were loaded at the start.
        journal: what it is doing, for other threads to read.

    Args:
        config: how to run.
        runner: what computes.
        inbox: shared with another thread.
        wake: called from another thread when there is work again without anything new in the inbox.

    Raises:
        AdapterError: an adapter of `config.lora_modules` cannot be loaded.
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner[Any],
        inbox: deque[Work] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wake: Callable[[], None] = lambda: None,
        grammars: GrammarStore | None = None,
    ) -> None:
        self.inbox: deque[Work] = deque() if inbox is None else inbox
        self.info = runner.info
        self.journal = StepJournal()
        self._runner = runner
        self._clock = clock
        self._scheduler = Scheduler(
            num_blocks=self.info.num_blocks,
            block_size=self.info.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            # What a bidirectional prompt's KV holds depends on the whole prompt, not on the tokens before alone.
            enable_prefix_caching=config.enable_prefix_caching and config.prompt_attention == "causal",
            priority_ageing_steps=config.priority_ageing_steps,
            preempt_every_steps=config.preempt_every_steps,
        )
        self._speculator = build_speculator(config, self.info, runner.drafter, clock)
        self._pool = None if runner.adapters is None else AdapterPool(runner.adapters, config.max_loras, wake)
        self.adapters: list[AdapterInfo] = [self._adapter_pool().load_now(*named) for named in config.lora_modules]
        self._grammars = GrammarDesk(grammars)
        self._computation = Computation(runner, self._grammars, self.journal)
        self._overlap = Overlap(runner.launcher, self.journal)
        self._book = RequestBook(clock, self._scheduler.finish, self._leave)
        self._answers = Answers(self._book, self._scheduler, self._speculator)
        self._leaving: list[Request] = []
        self._replies: list[AdapterReply] = []
        self._num_steps = 0
        self._num_failed_steps = 0
        self._num_oom_events = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        has_arrivals = self.inbox or (self._pool is not None and self._pool.has_work) or self._grammars.has_ready
        has_computing = self._scheduler.has_work or self._overlap.is_under_way
        return bool(has_arrivals or self._book.has_deltas or self._replies or has_computing)

    @property
    def failure(self) -> str | None:
        """Why nothing can be computed any more; None while it can. Other threads may ask."""
        return self._runner.failure

    @property
    def has_requests(self) -> bool:
        """Whether a request is open; when there is no work, it waits for its adapter or its grammar."""
        return bool(self._book)

    def add_request(self, submit: Submit) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: it can never be served, or its id is in use.
            UnknownAdapterError: its adapter is not loaded.
        """
        if submit.request_id in self._book:
            raise InvalidRequestError(f"request_id={submit.request_id!r} is in use: choose another", param="request_id")
        request = build_request(submit, self.info)
        can_start = self._grammars.receive(request, submit)
        request.arrived_s = self._clock()
        if can_start:
            self._enter(request, submit)
        self._book.open(submit.request_id, request, submit.params.deadline_s)

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load a LoRA adapter and wait for it; in a server, a `LoadAdapter` in the inbox does not hold up the loop.

        Raises:
            AdapterError: it is no adapter for this model, the name is taken, or LoRA is off.
        """
        return self._adapter_pool().load_now(name, path)

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its answers, in whatever state it is; ids that are unknown or ended are ignored."""
        self._book.cancel(request_id, index)

    def step(self) -> StepOutputs:
        """Compute one batch, or launch it and take up the one launched before; say what was added.

        Raises:
            EngineDeadError: nothing can be computed any more.
        """
        self.journal.enter("schedule")
        self._read_inbox()
        self._book.end_overdue()
        self._start_waiting_for_grammar()
        self._admit()
        batch = self._scheduler.schedule(is_under_way=self._overlap.is_under_way)
        if batch or self._overlap.is_under_way:
            self._advance(batch)
        self._admit()  # whoever waited for the adapter places that this step has freed
        replies, self._replies = tuple(self._replies), []
        outputs = StepOutputs(self._book.take_deltas(), self._stats(), replies)
        self.journal.enter(None)
        return outputs

    def close(self) -> None:
        """End what the runner has started outside of this process; there are no more steps."""
        self._runner.close()

    def describe(self) -> str:
        """What it is doing, for the log: numbers and ids, no text. May be called from another thread."""
        return describe_core(self.journal, self._scheduler, num_open=len(self._book), num_inbox=len(self.inbox))

    def _advance(self, batch: Seq[ScheduledSequence]) -> None:
        planned = self._speculator.plan(batch) if self._speculator is not None else 0
        was_under_way = self._overlap.is_under_way
        if not planned and self._launch(batch):
            if was_under_way:
                self._take_up()
            return
        if was_under_way:
            if not self._take_up():
                return  # the batch goes on from a step that did not count: the next one is scheduled anew
            batch = [scheduled for scheduled in batch if not scheduled.sequence.is_finished]
        if planned and self._speculator is not None:
            self.journal.enter("draft")
            reserve = self._scheduler.reserve_drafts
            batch = self._speculator.add_drafts(batch, planned, self._scheduler.budget.tokens, reserve)
            if self._launch(batch, planned):
                return
        if batch:
            self._compute(batch, planned)

    def _launch(self, batch: Seq[ScheduledSequence], planned: int = 0) -> bool:
        """Launch the batch, if there is anything in it and it may be; `planned` guesses a sequence were looked for."""
        is_short_of_memory = self._scheduler.budget.tokens < self._scheduler.budget.full
        is_launched = bool(batch) and self._overlap.launch(
            batch, self._clock(), is_short_of_memory=is_short_of_memory, planned=planned
        )
        self._num_steps += is_launched
        return is_launched

    def _take_up(self) -> bool:
        """Take up the step that was launched first. If it failed, compute it again, by itself, and say False."""
        step, tokens = self._overlap.take_up()
        self.journal.enter("emit")
        self._let_go()
        if tokens is None:
            if batch := take_back(step.rows):
                self._compute(batch)
            return False
        self._scheduler.commit_launched(step.rows)
        for row in step.rows:
            sequence = row.scheduled.sequence
            if row.end - row.scheduled.num_new_tokens < sequence.num_prompt_tokens and not sequence.is_finished:
                self._book.note_progress(sequence, row.end, step.began_s)
        self._read_inbox()  # a cancel that came meanwhile goes before this step's tokens
        self._book.end_overdue()
        self._answers.resolve(step.rows, tokens)
        self._count(step.batch, step.planned)
        return True

    def _compute(self, batch: Seq[ScheduledSequence], planned: int = 0) -> None:
        self._num_steps += 1
        began_s = self._clock()
        outcome = self._computation.run(batch)
        self.journal.enter("emit")
        if outcome.ran_out is not None:
            self._back_off(batch, outcome.ran_out)
            return
        self._scheduler.commit(outcome.computed)
        for scheduled in outcome.computed:
            sequence = scheduled.sequence
            # Whoever goes on behind its prompt has computed it before, and that was noted.
            num_computed = sequence.num_computed_tokens
            if num_computed - scheduled.num_new_tokens < sequence.num_prompt_tokens:
                self._book.note_progress(sequence, num_computed, began_s)
        self._read_inbox()  # a cancel that came meanwhile goes before this step's tokens
        self._book.end_overdue()
        if outcome.failures:
            self._fail(outcome.failures, len(batch))
        self._answers.report_prompts(outcome.computed, outcome.readings)
        for scheduled, tokens in outcome.sampled:
            if not scheduled.sequence.is_finished:
                self._answers.append(scheduled, tokens)
        if outcome.computed:
            self._count(outcome.computed, planned)

    def _count(self, batch: Seq[ScheduledSequence], planned: int) -> None:
        """A batch's tokens are there."""
        self.journal.count(batch)
        if self._speculator is not None:
            self._speculator.note_step(batch, planned)

    def _read_inbox(self) -> None:
        while self.inbox:
            match self.inbox.popleft():
                case Cancel(request_id, index):
                    self.cancel(request_id, index)
                case Submit() as submit:
                    try:
                        self.add_request(submit)
                    except (InvalidRequestError, AdapterError) as error:
                        self._book.refuse(submit, error)
                case LoadAdapter() | UnloadAdapter() as call:
                    self._manage_adapter(call)

    def _manage_adapter(self, call: LoadAdapter | UnloadAdapter) -> None:
        try:
            pool = self._adapter_pool()
            if isinstance(call, UnloadAdapter):
                self._replies.append(pool.unload(call))
            else:
                pool.load(call)
        except EngineError as error:
            self._replies.append(AdapterReply(call.call_id, error=str(error)))

    def _adapter_pool(self) -> AdapterPool:
        if self._pool is None:
            raise AdapterError("this engine runs without LoRA: start it with enable_lora")
        return self._pool

    def _start_waiting_for_grammar(self) -> None:
        for request, submit, error in self._grammars.take_ready():
            try:
                if error is not None:
                    raise error
                self._enter(request, submit)
            except (GrammarError, AdapterError) as failure:
                self._book.fail(request.sequences, str(failure), param_of(failure))

    def _enter(self, request: Request, submit: Submit) -> None:
        if submit.adapter is None:
            self._scheduler.add(request.start())
        else:
            self._adapter_pool().enter(request, submit.adapter)

    def _admit(self) -> None:
        """Hand the scheduler the requests whose adapters are in memory now."""
        if self._pool is None:
            return
        news = self._pool.take_news()
        self._replies += news.replies
        for request, reason in news.failures:
            self._book.fail(request.sequences, reason)
        for request, adapter_id in self._pool.admit():
            self._scheduler.add(request.start(adapter_id))

    def _leave(self, request: Request) -> None:
        if self._pool is not None:
            self._leaving.append(request)
            if not self._overlap.is_under_way:
                self._let_go()

    def _let_go(self) -> None:
        """Give up the adapters of requests that have ended: a step that was under way may have had rows of them."""
        while self._leaving:
            assert self._pool is not None
            self._pool.leave(self._leaving.pop())

    def _fail(self, failures: Seq[tuple[ScheduledSequence, str]], num_sequences: int) -> None:
        """End the answers that could not be computed, and those that wait for their prompts."""
        self._num_failed_steps += 1
        logger.error(
            "%d of a step's %d sequences cannot be computed and end with an error", len(failures), num_sequences
        )
        for scheduled, reason in failures:
            sequence = scheduled.sequence
            self._book.fail((*sequence.forks, sequence), f"the model failed: {reason}")
        if len(failures) == num_sequences:
            self._probe(failures[-1][1])

    def _back_off(self, batch: Seq[ScheduledSequence], reason: str) -> None:
        """Memory ran out: give back what can be, and compute less at a time. Who needs too much alone ends."""
        self._num_oom_events += 1
        num_tokens = sum(scheduled.num_new_tokens + len(scheduled.draft_token_ids) for scheduled in batch)
        self._runner.free_caches()
        if self._scheduler.back_off(batch):
            logger.warning(
                "memory ran out in a step of %d tokens and %d sequences: the next ones have %d tokens at most: %s",
                num_tokens, len(batch), self._scheduler.budget.tokens, reason,
            )  # fmt: skip
        else:
            self._fail([(scheduled, reason) for scheduled in batch], len(batch))

    def _probe(self, reason: str) -> None:
        """Nothing of a batch could be computed. Go on if a single token of nobody's can: it was the requests then."""
        allocator = self._scheduler.allocator
        if not allocator.num_free:
            return
        probe = Sequence("probe", 0, [0], SamplingParams(temperature=0.0, max_tokens=1), 0, max_total_tokens=2)
        probe.block_table.append(allocator.allocate())
        try:
            outcome = self._computation.run([ScheduledSequence(probe, 1)])
        finally:
            allocator.free(probe.block_table.pop())
        self.journal.enter("emit")
        if not outcome.computed:
            raise EngineDeadError(f"not even one token can be computed any more; before that: {reason}")

    def _stats(self) -> EngineStats:
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + (self._pool.num_parked if self._pool is not None else 0),
            num_free_blocks=self._scheduler.allocator.num_free,
            num_blocks=self._scheduler.allocator.num_blocks,
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._num_steps,
            num_waiting_tokens=self._scheduler.num_waiting_tokens,
            num_prefix_queries=self._scheduler.num_prefix_queries,
            num_prefix_hits=self._scheduler.num_prefix_hits,
            max_step_tokens=self._scheduler.budget.tokens,
            num_failed_steps=self._num_failed_steps,
            num_oom_events=self._num_oom_events,
            num_adapters=0 if self._pool is None else self._pool.num_resident,
            num_overlapped_steps=self._overlap.num_overlapped_steps,
            sync_points={**self._overlap.sync_points},
            **({} if self._speculator is None else self._speculator.stats()),
        )
