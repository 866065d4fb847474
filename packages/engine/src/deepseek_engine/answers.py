"""Answers: what a step's tokens and readings do to the answers that they belong to, and why an answer ends there."""

from collections.abc import Sequence as Seq

from deepseek_engine.messages import FinishReason
from deepseek_engine.request_book import RequestBook
from deepseek_engine.scheduler import Scheduler
from deepseek_engine.sequence import SampledToken, ScheduledSequence, Sequence
from deepseek_engine.speculation.speculator import Speculator
from deepseek_engine.steps.computation import Reading
from deepseek_engine.steps.launched_rows import LaunchedRow


class Answers:
    """Makes the answers of one engine longer, and says so in its book.

    Args:
        speculator: hears what came of its drafts; None where there are none.
    """

    def __init__(self, book: RequestBook, scheduler: Scheduler, speculator: Speculator | None) -> None:
        self._book = book
        self._scheduler = scheduler
        self._speculator = speculator

    def report_prompts(self, batch: Seq[ScheduledSequence], readings: Seq[Reading]) -> None:
        """Hand out what was read off prompts, and end the sequences that were there for nothing else."""
        for sequence, stop, part in readings:
            # What a cancelled answer has read is read again by the one that takes over the prompt.
            if sequence.reading is not None and not sequence.is_finished:
                sequence.reading.advance(stop, part)
                if part.logprobs or part.embedding is not None:
                    self._book.emit(sequence, part=part)
        for scheduled in batch:
            sequence = scheduled.sequence
            if sequence.is_prompt_only and sequence.num_uncomputed_tokens == 0 and not sequence.is_finished:
                self._book.emit(sequence, finish_reason="length")

    def append(self, scheduled: ScheduledSequence, tokens: Seq[SampledToken]) -> None:
        """Add the sampled token, and the one behind each draft for as long as the drafts were right."""
        sequence, drafts = scheduled.sequence, scheduled.draft_token_ids
        if sequence.grammar is not None:
            sequence.grammar.advance(tokens[0].token_id)
            if sequence.grammar.failure is not None:
                self._book.emit(sequence, finish_reason="error", error=sequence.grammar.failure, error_param="grammar")
                return
        finish_reason = _append_token(sequence, tokens[0].token_id)
        if drafts:
            num_added = 1
            while finish_reason is None and num_added < len(tokens):
                if drafts[num_added - 1] != tokens[num_added - 1].token_id:
                    break
                finish_reason = _append_token(sequence, tokens[num_added].token_id)
                num_added += 1
            tokens = tokens[:num_added]
            if self._speculator is not None:
                self._scheduler.accept_drafts(sequence, num_added - 1)
                self._speculator.observe(sequence, len(drafts), num_added - 1)
        self._say(sequence, tokens, finish_reason)

    def resolve(self, rows: Seq[LaunchedRow], tokens: Seq[SampledToken]) -> None:
        """A launched step's tokens are known. Those of answers that have ended since are dropped."""
        remaining = iter(tokens)
        for row in rows:
            sequence, end = row.scheduled.sequence, row.end
            if row.takes_token:
                token = next(remaining)
                if not sequence.is_finished:
                    finish_reason = _finish_reason(sequence, token.token_id, end)
                    sequence.resolve(end, token.token_id)
                    self._say(sequence, (token,), finish_reason)
            elif end == sequence.num_prompt_tokens and sequence.is_prompt_only and not sequence.is_finished:
                self._book.emit(sequence, finish_reason="length")

    def _say(self, sequence: Sequence, tokens: Seq[SampledToken], finish_reason: FinishReason | None) -> None:
        if finish_reason is None:
            self._book.emit_tokens(sequence, tokens)
        else:
            self._book.emit(sequence, tokens, finish_reason=finish_reason)


def _append_token(sequence: Sequence, token_id: int) -> FinishReason | None:
    finish_reason = _finish_reason(sequence, token_id, len(sequence.token_ids))
    sequence.append(token_id)
    return finish_reason


def _finish_reason(sequence: Sequence, token_id: int, position: int) -> FinishReason | None:
    """Why the answer ends with this token in this place, if it does. A grammar's end needs no minimum."""
    if token_id in sequence.stop_token_ids and (
        sequence.grammar is not None or position - sequence.num_prompt_tokens >= sequence.params.min_tokens
    ):
        return "stop"
    return "length" if position + 1 >= sequence.max_total_tokens else None
