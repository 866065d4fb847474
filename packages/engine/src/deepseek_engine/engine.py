"""The engine: requests in, deltas out. One `step()` is one turn of the loop, and the whole of it is on this page."""

import logging
from collections import deque
from collections.abc import Sequence as Seq
from typing import Any

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import EngineDeadError, InvalidRequestError
from deepseek_engine.messages import Cancel, Delta, EngineStats, FinishReason, StepOutputs, Submit, Work
from deepseek_engine.request import Request, build_request
from deepseek_engine.runner_protocol import Runner
from deepseek_engine.scheduler import Scheduler
from deepseek_engine.sequence import SampledToken, ScheduledSequence, Sequence

logger = logging.getLogger(__name__)


class Engine:
    """Runs all requests together on one runner. Not thread-safe, but `inbox` may be filled from another thread.

    Attributes:
        inbox: submits and cancels that the next step takes up; cancels also take effect in the middle of a step.
        info: what the runner has loaded.
    """

    def __init__(self, config: EngineConfig, runner: Runner[Any], inbox: deque[Work] | None = None) -> None:
        self.inbox: deque[Work] = deque() if inbox is None else inbox
        self.info = runner.info
        self._runner = runner
        self._scheduler = Scheduler(
            num_blocks=self.info.num_blocks,
            block_size=self.info.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self._requests: dict[str, Request] = {}
        self._deltas: list[Delta] = []
        self._num_steps = 0
        self._last_step_failed = False

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.inbox or self._deltas or self._scheduler.has_work)

    def add_request(self, submit: Submit) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: it can never be served, or its id is in use.
        """
        if submit.request_id in self._requests:
            raise InvalidRequestError(f"request_id={submit.request_id!r} is in use: choose another", param="request_id")
        request = build_request(submit, self.info)
        self._requests[submit.request_id] = request
        self._scheduler.add(request.sequences[0])

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its answers, in whatever state it is; ids that are unknown or ended are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            # Backwards, so that no answer takes over a prompt from the first only to be cancelled next.
            for sequence in reversed(request.sequences):
                if index in (None, sequence.index) and not sequence.is_finished:
                    self._emit(sequence, finish_reason="abort")

    def step(self) -> StepOutputs:
        """Compute one batch and say what it added.

        Raises:
            EngineDeadError: two steps in a row failed, so the runner is not fit to go on.
        """
        self._read_inbox()
        batch = self._scheduler.schedule()
        if batch:
            self._num_steps += 1
            try:
                sampled = self._run(batch)
            except Exception as error:  # whatever a model or a device may raise
                self._fail(batch, error)
            else:
                self._commit(batch)
                self._read_inbox()  # a cancel that came meanwhile goes before this step's tokens
                for sequence, token in sampled:
                    if not sequence.is_finished:
                        self._append(sequence, token)
        deltas, self._deltas = tuple(self._deltas), []
        return StepOutputs(deltas, self._stats())

    def _read_inbox(self) -> None:
        while self.inbox:
            match self.inbox.popleft():
                case Cancel(request_id, index):
                    self.cancel(request_id, index)
                case Submit() as submit:
                    try:
                        self.add_request(submit)
                    except InvalidRequestError as error:
                        self._refuse(submit, str(error))

    def _run(self, batch: Seq[ScheduledSequence]) -> list[tuple[Sequence, SampledToken]]:
        """Each sequence that gets a token in this step, with the token."""
        logits = self._runner.forward(batch)
        tokens = self._runner.sample(logits, batch)
        return list(zip([s.sequence for s in batch if s.needs_token], tokens, strict=True))

    def _commit(self, batch: Seq[ScheduledSequence]) -> None:
        self._last_step_failed = False
        self._scheduler.commit(batch)
        for scheduled in batch:
            self._requests[scheduled.sequence.request_id].note_progress(scheduled.sequence)

    def _append(self, sequence: Sequence, token: SampledToken) -> None:
        # The stop rule reads how many tokens came before this one, so it goes first.
        is_stop = token.token_id in sequence.stop_token_ids and sequence.num_output_tokens >= sequence.params.min_tokens
        sequence.token_ids.append(token.token_id)
        if is_stop:
            self._emit(sequence, token, finish_reason="stop")
        elif len(sequence.token_ids) >= sequence.max_total_tokens:
            self._emit(sequence, token, finish_reason="length")
        else:
            self._emit(sequence, token)

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
        token: SampledToken | None = None,
        *,
        finish_reason: FinishReason | None = None,
        error: str | None = None,
    ) -> None:
        """Say what was added to an answer; a finish reason ends it and frees its blocks."""
        request = self._requests[sequence.request_id]
        delta = Delta(
            request_id=sequence.request_id,
            index=sequence.index,
            token_ids=() if token is None else (token.token_id,),
            logprobs=None if token is None or token.logprobs is None else (token.logprobs,),
            finish_reason=finish_reason,
            stop_token_id=token.token_id if token is not None and finish_reason == "stop" else None,
            num_prompt_tokens=request.num_prompt_tokens,
            num_cached_tokens=request.num_cached_tokens,
            error=error,
        )
        self._deltas.append(delta)
        if finish_reason is not None:
            self._scheduler.finish(sequence)
            request.num_unfinished -= 1
            if not request.num_unfinished:
                del self._requests[sequence.request_id]

    def _refuse(self, submit: Submit, reason: str) -> None:
        for index in range(submit.params.n):
            delta = Delta(request_id=submit.request_id, index=index, finish_reason="error", error=reason)
            self._deltas.append(delta)

    def _stats(self) -> EngineStats:
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_free_blocks=self._scheduler.allocator.num_free,
            num_blocks=self._scheduler.allocator.num_blocks,
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._num_steps,
        )
