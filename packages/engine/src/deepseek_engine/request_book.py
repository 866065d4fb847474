"""RequestBook: the requests that are open, how long they may stay so, and what is to be said to them."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Final

from deepseek_engine.errors import EngineError, InvalidRequestError
from deepseek_engine.messages import Delta, FinishReason, Submit, TokenLogprobs
from deepseek_engine.prompt_reading import PromptPart
from deepseek_engine.request import Request
from deepseek_engine.scheduling.deadlines import Deadlines
from deepseek_engine.sequence import SampledToken, Sequence

_NOTHING_READ: Final = PromptPart()


class RequestBook:
    """Every answer in it ends with exactly one delta that has a finish reason.

    Args:
        clock: seconds.
        finish: called with an answer that has ended, to free what it holds.
        leave: called with a request whose last answer has ended.
    """

    def __init__(
        self, clock: Callable[[], float], finish: Callable[[Sequence], None], leave: Callable[[Request], None]
    ) -> None:
        self._clock = clock
        self._finish = finish
        self._leave = leave
        self._deadlines = Deadlines()
        self._requests: dict[str, Request] = {}
        self._deltas: list[Delta] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def has_deltas(self) -> bool:
        """Whether something is to be said."""
        return bool(self._deltas)

    def open(self, request_id: str, request: Request, deadline_s: float | None) -> None:
        """Enter a request that arrived at its `arrived_s`."""
        self._requests[request_id] = request
        if deadline_s is not None:
            self._deadlines.put(request_id, request.arrived_s + deadline_s)

    def note_progress(self, sequence: Sequence, num_computed_tokens: int, step_began_s: float) -> None:
        """A step has computed an answer, prompt included, up to here."""
        self._requests[sequence.request_id].note_progress(sequence, num_computed_tokens, step_began_s)

    def cancel(self, request_id: str, index: int | None = None, *, timed_out: bool = False) -> None:
        """End a request, or one of its answers, in whatever state it is; ids that are unknown or ended are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            # Backwards, so that no answer takes over a prompt from the first only to be cancelled next.
            for sequence in reversed(request.sequences):
                if index in (None, sequence.index) and not sequence.is_finished:
                    self.emit(sequence, finish_reason="abort", timed_out=timed_out)

    def end_overdue(self) -> None:
        """End the requests whose time is up, whether they run or wait."""
        for request_id in self._deadlines.take_due(self._clock()):
            self.cancel(request_id, timed_out=True)

    def fail(self, sequences: Seq[Sequence], reason: str, param: str | None = None) -> None:
        """End answers with an error, those of them that have not ended."""
        for sequence in sequences:
            if not sequence.is_finished:
                self.emit(sequence, finish_reason="error", error=reason, error_param=param)

    def emit_tokens(self, sequence: Sequence, tokens: Seq[SampledToken]) -> None:
        """Say what was added to an answer that goes on: nearly every delta, so it takes only the fields that it has."""
        request = self._requests[sequence.request_id]
        self._deltas.append(
            Delta(
                request_id=sequence.request_id,
                index=sequence.index,
                token_ids=tuple([token.token_id for token in tokens]),
                logprobs=None if sequence.params.logprobs is None else _logprobs_of(tokens),
                num_prompt_tokens=request.num_prompt_tokens,
                num_cached_tokens=request.num_cached_tokens,
                num_reasoning_tokens=0 if sequence.thinking is None else sequence.thinking.num_tokens,
            )
        )

    def emit(
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
            logprobs=_logprobs_of(tokens),
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
            self._finish(sequence)
            request.num_unfinished -= 1
            if not request.num_unfinished:
                del self._requests[sequence.request_id]
                self._deadlines.discard(sequence.request_id)
                self._leave(request)

    def refuse(self, submit: Submit, error: EngineError) -> None:
        """End every answer of a request that was never opened."""
        for index in range(submit.params.n):
            delta = Delta(
                request_id=submit.request_id,
                index=index,
                finish_reason="error",
                error=str(error),
                error_param=param_of(error),
            )
            self._deltas.append(delta)

    def take_deltas(self) -> tuple[Delta, ...]:
        """What has been said since the last call, in order."""
        deltas, self._deltas = tuple(self._deltas), []
        return deltas

    def _queue_s(self, request: Request) -> float:
        return (self._clock() if request.started_s is None else request.started_s) - request.arrived_s


def _logprobs_of(tokens: Seq[SampledToken]) -> tuple[TokenLogprobs, ...] | None:
    return tuple([token.logprobs for token in tokens if token.logprobs is not None]) or None


def param_of(error: EngineError) -> str | None:
    """The field of the request that is at fault, if one is."""
    return error.param if isinstance(error, InvalidRequestError) else None
