"""Generation: a job in the engine, as a stream of what each step added to each answer."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import msgspec

from deepseek_engine.answer_reader import AnswerReader
from deepseek_engine.grammar.source import GrammarUse
from deepseek_engine.messages import Delta, FinishReason, Submit, TokenLogprobs
from deepseek_engine.server.engine_client import DeltaStream, EngineClient
from deepseek_engine.server.job import Job
from deepseek_engine.server.joined_deltas import join_deltas
from deepseek_engine.server.usage import UsageMeter
from deepseek_engine.text_parsers.events import Event
from deepseek_engine.tokenizer import Tokenizer

WireFinish = FinishReason | Literal["tool_calls"]
"""How an answer ended, as callers are told."""


class ChoiceUpdate(msgspec.Struct, frozen=True):
    """What a step added to one answer, or several steps whose deltas have waited.

    Attributes:
        text: new text, of an answer that is not parsed.
        embedding: the prompt's, as little-endian float32.
        prompt_logprobs: of the next prompt tokens; they are those of all answers to the prompt.
        error: what failed when `finish_reason` is `error`.
        error_param: the field of the request that is at fault, if one is.
        events: what the parser found, of an answer that is parsed.
        is_reasoning: for each token, whether it was reasoning; empty for an answer that is not parsed.
    """

    index: int
    text: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprobs] = ()
    finish_reason: WireFinish | None = None
    error: str | None = None
    events: Sequence[Event] = ()
    is_reasoning: Sequence[bool] = ()
    error_param: str | None = None
    prompt_logprobs: Sequence[TokenLogprobs] = ()
    embedding: bytes | None = None


@dataclass(slots=True)
class Course:
    """How the engine got along with a request, for its access line; no part of the answer.

    Attributes:
        num_preemptions: of all its answers.
        queue_s: how long it waited for its first place in a batch; None until the engine has said.
        timed_out: whether its deadline ended it.
    """

    num_preemptions: int = 0
    queue_s: float | None = None
    timed_out: bool = False

    def note(self, delta: Delta) -> None:
        """Take in an answer's last delta."""
        self.num_preemptions += delta.num_preemptions
        self.queue_s = max(self.queue_s or 0.0, delta.queue_s)
        self.timed_out = self.timed_out or delta.timed_out


class Generation:
    """Runs a job: submits its prompts, turns tokens into text, ends answers at stop strings, counts usage.

    Args:
        engine: where it runs.
        tokenizer: the model's.
        job: what to run.
        request_id: unique in this process; prompts are submitted as `request_id/0` and so on.
        cache_salt: keeps its prefix-cache entries apart.
        adapter: the LoRA adapter to use; None is the base model.

    Raises:
        QueueFullError, EngineDeadError, InvalidRequestError: the engine does not take it.
    """

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        job: Job,
        *,
        request_id: str,
        cache_salt: str = "",
        adapter: str | None = None,
    ) -> None:
        self.job = job
        self.usage = UsageMeter(len(job.prompts))
        self.course = Course()
        self.finish_reasons: dict[int, WireFinish] = {}
        self._num_unfinished = job.num_choices
        self._engine = engine
        self._ids = [f"{request_id}/{index}" for index in range(len(job.prompts))]
        self._readers = [
            AnswerReader(tokenizer, prompt.params.stop, job.parser)
            for prompt in job.prompts
            for _ in range(job.num_choices_per_prompt)
        ]
        self._streams: list[DeltaStream] = []
        try:
            for engine_id, prompt in zip(self._ids, job.prompts, strict=True):
                request = Submit(
                    request_id=engine_id,
                    prompt_token_ids=prompt.token_ids,
                    params=prompt.params,
                    eos_token_ids=(*tokenizer.eos_token_ids, *job.end_token_ids),
                    cache_salt=cache_salt,
                    grammar=_grammar_use(job, tokenizer),
                    thinking=job.thinking,
                    adapter=adapter,
                    embed=prompt.embed,
                )
                self._streams.append(engine.submit(request))
        except BaseException:
            self.close()
            raise

    @property
    def is_finished(self) -> bool:
        """Whether every answer has ended."""
        return not self._num_unfinished

    def cancel(self) -> None:
        """End what still runs; `updates` then ends by itself with finish reason `abort`."""
        for engine_id in self._ids[: len(self._streams)]:
            self._engine.cancel(engine_id)

    def close(self) -> None:
        """Cancel what still runs and take no more of it."""
        for stream in self._streams:
            stream.close()

    async def updates(self) -> AsyncGenerator[list[ChoiceUpdate]]:
        """What is new, as it comes, until every answer has ended: one update an answer that got anything.

        Raises:
            EngineDeadError: the core is gone.
        """
        if len(self._streams) == 1:  # nearly all requests: nothing comes between the engine's stream and its reader
            async for deltas in self._streams[0]:
                if updates := self._take_all(0, deltas):
                    yield updates
                if not self._num_unfinished:
                    return
            return
        async with aclosing(_merged(self._streams)) as batches:
            async for prompt_index, deltas in batches:
                if updates := self._take_all(prompt_index, deltas):
                    yield updates
                if not self._num_unfinished:
                    return

    def _take_all(self, prompt_index: int, deltas: Sequence[Delta]) -> list[ChoiceUpdate]:
        return [update for delta in join_deltas(deltas) if (update := self._take(prompt_index, delta)) is not None]

    def _take(self, prompt_index: int, delta: Delta) -> ChoiceUpdate | None:
        index = prompt_index * self.job.num_choices_per_prompt + delta.index
        if delta.finish_reason is not None:
            self.course.note(delta)
        if index in self.finish_reasons:
            return None  # what the engine still made before it heard of the stop string
        reader = self._readers[index]
        # The token that ended the answer counts, and is in no text even where it is not a special one.
        ended_by_token = delta.stop_token_id is not None and delta.token_ids[-1:] == (delta.stop_token_id,)
        added = reader.push(delta.token_ids[:-1] if ended_by_token else delta.token_ids)
        text, events, has_ended = added.text, added.events, added.has_ended
        num_tokens = added.num_tokens if has_ended else len(delta.token_ids)
        finish_reason: WireFinish | None = delta.finish_reason
        if not has_ended and finish_reason is not None:
            rest = reader.finish()
            text, events, has_ended = text + rest.text, [*events, *rest.events], rest.has_ended
        if has_ended:
            if finish_reason is None:
                self._engine.cancel(self._ids[prompt_index], delta.index)
            finish_reason = "stop"
        if finish_reason == "stop" and reader.has_called:
            finish_reason = "tool_calls"
        if finish_reason is not None:
            self.finish_reasons[index] = finish_reason
            self._num_unfinished -= 1
        self.usage.add(prompt_index, delta, num_tokens, sum(added.is_reasoning))
        return ChoiceUpdate(
            index,
            text,
            delta.token_ids[:num_tokens],
            delta.logprobs[:num_tokens] if delta.logprobs is not None else (),
            finish_reason,
            delta.error,
            events,
            (*added.is_reasoning, False)[:num_tokens] if added.is_reasoning else (),
            error_param=delta.error_param,
            prompt_logprobs=delta.prompt_logprobs,
            embedding=delta.embedding,
        )


def _grammar_use(job: Job, tokenizer: Tokenizer) -> GrammarUse | None:
    """The job's grammar, which begins behind the reasoning where the prompt left the model within it."""
    if job.grammar is None:
        return None
    parser = job.parser
    if parser is None or parser.format.reasoning is None or parser.reasoning != "open":
        return GrammarUse(job.grammar)
    return GrammarUse(job.grammar, tuple(tokenizer.encode(parser.format.reasoning.close, add_special_tokens=False)))


async def _merged(streams: Sequence[DeltaStream]) -> AsyncGenerator[tuple[int, list[Delta]]]:
    """Deltas of several streams as they come, each with its stream's number."""
    queue: asyncio.Queue[tuple[int, list[Delta] | None]] = asyncio.Queue()

    async def pump(number: int, stream: DeltaStream) -> None:
        try:
            async for deltas in stream:
                queue.put_nowait((number, deltas))
        finally:
            queue.put_nowait((number, None))

    pumps = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    num_open = len(pumps)
    try:
        while num_open:
            number, deltas = await queue.get()
            if deltas is not None:
                yield number, deltas
            else:
                num_open -= 1
                await pumps[number]  # raises what ended it
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
