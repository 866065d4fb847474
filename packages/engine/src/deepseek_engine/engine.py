"""The engine: requests in, deltas out. One `step()` is one turn of the loop, and the whole of it is on this page."""

import logging
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import islice
from typing import Any, Final

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import AdapterError, EngineDeadError, EngineError, GrammarError, InvalidRequestError
from deepseek_engine.grammar.desk import GrammarDesk
from deepseek_engine.grammar.store import GrammarStore
from deepseek_engine.lora.pool import AdapterPool
from deepseek_engine.messages import (
    AdapterInfo,
    AdapterReply,
    Cancel,
    Delta,
    EngineStats,
    FinishReason,
    LoadAdapter,
    StepOutputs,
    Submit,
    UnloadAdapter,
    Work,
)
from deepseek_engine.prompt_reading import PromptPart
from deepseek_engine.request import Request, build_request
from deepseek_engine.runner_protocol import Runner
from deepseek_engine.scheduler import Scheduler
from deepseek_engine.scheduling.deadlines import Deadlines
from deepseek_engine.sequence import SampledToken, ScheduledSequence, Sequence
from deepseek_engine.speculation.speculator import Speculator

logger = logging.getLogger(__name__)

Sampled = tuple[ScheduledSequence, list[SampledToken]]
Reading = tuple[Sequence, int, PromptPart]

_NOTHING_READ: Final = PromptPart()


class Engine:
    """Runs all requests together on one runner. Not thread-safe, but `inbox` may be filled from another thread.

    Attributes:
        inbox: submits and cancels that the next step takes up; cancels also take effect in the middle of a step.
        info: what the runner has loaded.
        adapters: the LoRA adapters that were loaded at the start.

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
        self._runner = runner
        self._clock = clock
        self._deadlines = Deadlines()
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
        self._speculator: Speculator | None = None
        if config.speculation == "ngram":
            self._speculator = Speculator(config.num_speculative_tokens, config.ngram_min, config.ngram_max)
        self._pool = None if runner.adapters is None else AdapterPool(runner.adapters, config.max_loras, wake)
        self.adapters: list[AdapterInfo] = [self._adapter_pool().load_now(*named) for named in config.lora_modules]
        self._grammars = GrammarDesk(grammars)
        self._requests: dict[str, Request] = {}
        self._replies: list[AdapterReply] = []
        self._deltas: list[Delta] = []
        self._num_steps = 0
        self._last_step_failed = False

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        has_arrivals = self.inbox or (self._pool is not None and self._pool.has_work) or self._grammars.has_ready
        return bool(has_arrivals or self._deltas or self._replies or self._scheduler.has_work)

    @property
    def has_requests(self) -> bool:
        """Whether a request is open; when there is no work, it waits for its adapter or its grammar."""
        return bool(self._requests)

    def add_request(self, submit: Submit) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: it can never be served, or its id is in use.
            UnknownAdapterError: its adapter is not loaded.
        """
        if submit.request_id in self._requests:
            raise InvalidRequestError(f"request_id={submit.request_id!r} is in use: choose another", param="request_id")
        request = build_request(submit, self.info)
        can_start = self._grammars.receive(request, submit)
        request.arrived_s = self._clock()
        if can_start:
            self._enter(request, submit)
        self._requests[submit.request_id] = request
        if submit.params.deadline_s is not None:
            self._deadlines.put(submit.request_id, request.arrived_s + submit.params.deadline_s)

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load a LoRA adapter and wait for it; in a server, a `LoadAdapter` in the inbox does not hold up the loop.

        Raises:
            AdapterError: it is no adapter for this model, the name is taken, or LoRA is off.
        """
        return self._adapter_pool().load_now(name, path)

    def cancel(self, request_id: str, index: int | None = None, *, timed_out: bool = False) -> None:
        """End a request, or one of its answers, in whatever state it is; ids that are unknown or ended are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            # Backwards, so that no answer takes over a prompt from the first only to be cancelled next.
            for sequence in reversed(request.sequences):
                if index in (None, sequence.index) and not sequence.is_finished:
                    self._emit(sequence, finish_reason="abort", timed_out=timed_out)

    def step(self) -> StepOutputs:
        """Compute one batch and say what it added.

        Raises:
            EngineDeadError: two steps in a row failed, so the runner is not fit to go on.
        """
        self._read_inbox()
        self._end_overdue()
        self._start_waiting_for_grammar()
        self._admit()
        batch = self._scheduler.schedule()
        if self._speculator is not None:
            batch = self._speculator.add_drafts(batch, self._scheduler.budget.tokens, self._scheduler.reserve_drafts)
        if batch:
            self._num_steps += 1
            began_s = self._clock()
            try:
                sampled, readings = self._run(batch)
            except Exception as error:  # whatever a model or a device may raise
                self._fail(batch, error)
            else:
                self._commit(batch, began_s)
                self._read_inbox()  # a cancel that came meanwhile goes before this step's tokens
                self._end_overdue()
                self._report_prompts(batch, readings)
                for scheduled, tokens in sampled:
                    if not scheduled.sequence.is_finished:
                        self._append(scheduled, tokens)
        self._admit()  # whoever waited for the adapter places that this step has freed
        deltas, self._deltas = tuple(self._deltas), []
        replies, self._replies = tuple(self._replies), []
        return StepOutputs(deltas, self._stats(), replies)

    def _read_inbox(self) -> None:
        while self.inbox:
            match self.inbox.popleft():
                case Cancel(request_id, index):
                    self.cancel(request_id, index)
                case Submit() as submit:
                    try:
                        self.add_request(submit)
                    except (InvalidRequestError, AdapterError) as error:
                        self._refuse(submit, error)
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
                for sequence in request.sequences:
                    if not sequence.is_finished:
                        self._emit(sequence, finish_reason="error", error=str(failure), error_param=_param_of(failure))

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
            for sequence in request.sequences:
                if not sequence.is_finished:
                    self._emit(sequence, finish_reason="error", error=reason)
        for request, adapter_id in self._pool.admit():
            self._scheduler.add(request.start(adapter_id))

    def _end_overdue(self) -> None:
        """End the requests whose time is up, whether they run or wait."""
        for request_id in self._deadlines.take_due(self._clock()):
            self.cancel(request_id, timed_out=True)

    def _run(self, batch: Seq[ScheduledSequence]) -> tuple[list[Sampled], list[Reading]]:
        """Each sequence that gets a token in this step, with the token and those behind its drafts; what was read."""
        logits = self._runner.forward(batch)
        read = [(s.sequence, positions.stop) for s in batch if (positions := s.read_positions)]
        parts = self._runner.read_prompts(batch) if read else []
        readings = [(sequence, stop, part) for (sequence, stop), part in zip(read, parts, strict=True)]
        self._grammars.fill_masks(batch)
        tokens = iter(self._runner.sample(logits, batch))
        sampled = [(s, list(islice(tokens, s.num_sampled_rows))) for s in batch if s.needs_token]
        assert next(tokens, None) is None, "more tokens than rows"
        return sampled, readings

    def _commit(self, batch: Seq[ScheduledSequence], began_s: float) -> None:
        self._last_step_failed = False
        self._scheduler.commit(batch)
        for scheduled in batch:
            self._requests[scheduled.sequence.request_id].note_progress(scheduled.sequence, began_s)

    def _report_prompts(self, batch: Seq[ScheduledSequence], readings: Seq[Reading]) -> None:
        """Hand out what was read off prompts, and end the sequences that were there for nothing else."""
        for sequence, stop, part in readings:
            # What a cancelled answer has read is read again by the one that takes over the prompt.
            if sequence.reading is not None and not sequence.is_finished:
                sequence.reading.advance(stop, part)
                if part.logprobs or part.embedding is not None:
                    self._emit(sequence, part=part)
        for scheduled in batch:
            sequence = scheduled.sequence
            is_computed = sequence.num_computed_tokens >= sequence.num_prompt_tokens
            if sequence.is_prompt_only and is_computed and not sequence.is_finished:
                self._emit(sequence, finish_reason="length")

    def _append(self, scheduled: ScheduledSequence, tokens: Seq[SampledToken]) -> None:
        """Add the sampled token, and the one behind each draft for as long as the drafts were right."""
        sequence, drafts = scheduled.sequence, scheduled.draft_token_ids
        if sequence.grammar is not None:
            sequence.grammar.advance(tokens[0].token_id)
            if sequence.grammar.failure is not None:
                self._emit(sequence, finish_reason="error", error=sequence.grammar.failure, error_param="grammar")
                return
        num_added = 0
        finish_reason: FinishReason | None = None
        while finish_reason is None and num_added < len(tokens):
            if num_added and drafts[num_added - 1] != tokens[num_added - 1].token_id:
                break
            finish_reason = _append_token(sequence, tokens[num_added].token_id)
            num_added += 1
        if drafts and self._speculator is not None:
            self._scheduler.accept_drafts(sequence, num_added - 1)
            self._speculator.observe(sequence, len(drafts), num_added - 1)
        self._emit(sequence, tokens[:num_added], finish_reason=finish_reason)

    def _fail(self, batch: Seq[ScheduledSequence], error: Exception) -> None:
        """End every answer of a batch that could not be computed, and those that wait for its prompts."""
        if self._last_step_failed:
            raise EngineDeadError(f"two steps in a row failed, the last with {error!r}") from error
        self._last_step_failed = True
        logger.error("a step failed; its %d sequences end with an error", len(batch), exc_info=error)
        for scheduled in batch:
            for sequence in (*scheduled.sequence.forks, scheduled.sequence):
                if not sequence.is_finished:
                    self._emit(sequence, finish_reason="error", error=f"the model failed: {error!r}")

    def _emit(
        self,
        sequence: Sequence,
        tokens: Seq[SampledToken] = (),
        *,
        part: PromptPart = _NOTHING_READ,
        finish_reason: FinishReason | None = None,
        error: str | None = None,
        timed_out: bool = False,
        error_param: str | None = None,
    ) -> None:
        """Say what was added to an answer; a finish reason ends it and frees its blocks."""
        request = self._requests[sequence.request_id]
        is_last = finish_reason is not None
        token_ids = tuple(token.token_id for token in tokens)
        delta = Delta(
            request_id=sequence.request_id,
            index=sequence.index,
            token_ids=token_ids,
            logprobs=tuple(token.logprobs for token in tokens if token.logprobs is not None) or None,
            prompt_logprobs=part.logprobs,
            embedding=part.embedding,
            finish_reason=finish_reason,
            stop_token_id=token_ids[-1] if finish_reason == "stop" else None,
            num_prompt_tokens=request.num_prompt_tokens,
            num_cached_tokens=request.num_cached_tokens,
            num_reasoning_tokens=0 if sequence.thinking is None else sequence.thinking.num_tokens,
            error=error,
            num_preemptions=sequence.num_preemptions if is_last else 0,
            queue_s=self._queue_s(request) if is_last else 0.0,
            timed_out=timed_out,
            error_param=error_param,
        )
        self._deltas.append(delta)
        if is_last:
            self._scheduler.finish(sequence)
            request.num_unfinished -= 1
            if not request.num_unfinished:
                del self._requests[sequence.request_id]
                self._deadlines.discard(sequence.request_id)
                if self._pool is not None:
                    self._pool.leave(request)

    def _queue_s(self, request: Request) -> float:
        return (self._clock() if request.started_s is None else request.started_s) - request.arrived_s

    def _refuse(self, submit: Submit, error: EngineError) -> None:
        for index in range(submit.params.n):
            delta = Delta(
                request_id=submit.request_id,
                index=index,
                finish_reason="error",
                error=str(error),
                error_param=_param_of(error),
            )
            self._deltas.append(delta)

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
            num_draft_tokens=self._speculator.num_draft_tokens if self._speculator is not None else 0,
            num_accepted_tokens=self._speculator.num_accepted_tokens if self._speculator is not None else 0,
            num_adapters=0 if self._pool is None else self._pool.num_resident,
        )


def _param_of(error: EngineError) -> str | None:
    return error.param if isinstance(error, InvalidRequestError) else None


def _append_token(sequence: Sequence, token_id: int) -> FinishReason | None:
    """Make the answer longer by a token; why it ends there, if it does."""
    # The stop rule reads how many tokens came before this one, so it goes first. A grammar's end needs no minimum.
    may_stop = sequence.grammar is not None or sequence.num_output_tokens >= sequence.params.min_tokens
    is_stop = may_stop and token_id in sequence.stop_token_ids
    sequence.append(token_id)
    if is_stop:
        return "stop"
    return "length" if len(sequence.token_ids) >= sequence.max_total_tokens else None
