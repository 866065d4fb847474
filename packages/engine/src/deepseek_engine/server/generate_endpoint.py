"""The endpoints that the model computes for: read, convert, run, answer. Raw ASGI; a task watches each caller.

Every request ends in exactly one way. A caller that leaves cancels the request as the abort endpoint does: the engine
ends it within a step, its last delta carries the exact usage, and the request is recorded like any other.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, Generic, TypeVar

import pydantic
from starlette.types import Receive, Scope, Send

from deepseek_client.types import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerateRequest,
    SamplingFields,
)
from deepseek_engine.server.caller_watch import CallerWatch
from deepseek_engine.server.convert import Converter
from deepseek_engine.server.embeddings import EmbeddingRenderer
from deepseek_engine.server.errors import ApiError, as_api_error, validation_error
from deepseek_engine.server.event_stream import EventStream
from deepseek_engine.server.generation import ChoiceUpdate, Generation
from deepseek_engine.server.http import (
    REQUEST_ID_KEY,
    WRITE_KEY,
    ClientGoneError,
    header,
    read_body,
    send_answer,
    send_error,
)
from deepseek_engine.server.job import Job
from deepseek_engine.server.record import CLIENT_GONE, RequestRecord
from deepseek_engine.server.render import ChatRenderer, CompletionRenderer, GenerationRenderer, Renderer
from deepseek_engine.server.state import ServerState
from deepseek_engine.server.structured import requested_grammar
from deepseek_engine.server.unsupported import refuse_unsupported
from deepseek_engine.tokenizer import Tokenizer

Request = TypeVar("Request", bound=SamplingFields)

_MAX_SALT_CHARS: Final = 256


@dataclass(frozen=True)
class Dialect(Generic[Request]):
    """What sets one endpoint apart: its request, how that becomes a job, and how answers look."""

    route: str
    request_type: type[Request]
    convert: Callable[[Converter, Request], Awaitable[Job]]
    renderer: Callable[[Job, Tokenizer], Renderer]


GENERATE: Final = Dialect("generate", GenerateRequest, Converter.generate, GenerationRenderer)
CHAT: Final = Dialect("chat/completions", ChatCompletionRequest, Converter.chat, ChatRenderer)
COMPLETIONS: Final = Dialect("completions", CompletionRequest, Converter.completions, CompletionRenderer)

EMBEDDINGS: Final = Dialect("embeddings", EmbeddingRequest, Converter.embeddings, EmbeddingRenderer)


class GenerateEndpoint(Generic[Request]):
    """An ASGI app that answers one dialect."""

    def __init__(self, state: ServerState, dialect: Dialect[Request]) -> None:
        self._state = state
        self._dialect = dialect
        self._numbers = count()
        dialect.request_type.model_rebuild()  # compile the validator now, not within the first request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request_id: str = scope[REQUEST_ID_KEY]
        record = RequestRecord(self._dialect.route, request_id)
        events = EventStream(send, self._state.settings.keep_alive_s, scope.get(WRITE_KEY))
        try:
            job, generation = await self._start(scope, receive, request_id, record)
            with self._state.running.track(request_id, generation):
                await self._answer(job, generation, receive, events, send, record)
        except ClientGoneError:
            record.fail(CLIENT_GONE, "abort")
        except asyncio.CancelledError:
            record.fail(CLIENT_GONE, "abort")
            raise
        except Exception as error:
            failure = as_api_error(error)
            record.fail(failure.status)
            if events.has_begun:
                await events.fail(failure.body)
            else:
                await send_error(send, failure)
        finally:
            record.close(self._state.metrics)

    async def _start(
        self, scope: Scope, receive: Receive, request_id: str, record: RequestRecord
    ) -> tuple[Job, Generation]:
        """Read the request and hand it to the engine."""
        state = self._state
        body = await read_body(scope, receive, state.settings.max_body_bytes)
        state.check_available()
        try:
            # strict: "5" is not a number and 1 is not true
            request = self._dialect.request_type.model_validate_json(body, strict=True)
        except pydantic.ValidationError as error:
            raise validation_error(error) from None
        model = state.models.find(request.model)
        refuse_unsupported(request)
        record.model, record.adapter = model.name, model.adapter
        job = await self._dialect.convert(state.converter, request)
        job = replace(job, grammar=await requested_grammar(request, job, state.grammars))
        generation = Generation(
            state.engine,
            state.tokenizer,
            job,
            # The caller's id may come twice; the engine's may not.
            request_id=f"{request_id}#{self._dialect.route}-{next(self._numbers)}",
            cache_salt=_cache_salt(scope),
            adapter=model.adapter,
        )
        record.usage, record.course = generation.usage, generation.course
        return job, generation

    async def _answer(
        self, job: Job, generation: Generation, receive: Receive, events: EventStream, send: Send, record: RequestRecord
    ) -> None:
        renderer = self._dialect.renderer(job, self._state.tokenizer)
        try:
            async with CallerWatch(receive, on_leave=generation.cancel) as caller:
                if job.stream:
                    # In a task of its own: each step wakes that, and not also the dozen frames of the app around it.
                    await asyncio.create_task(self._stream(generation, renderer, events, record))
                    await events.end(renderer.closing(generation.usage.to_json()))
                else:
                    await self._answer_whole(job, generation, renderer, send, record)
            record.succeed(CLIENT_GONE if caller.has_left else 200, _overall_finish(generation))
        finally:
            generation.close()

    async def _stream(
        self, generation: Generation, renderer: Renderer, events: EventStream, record: RequestRecord
    ) -> None:
        beat = asyncio.create_task(events.keep_alive())
        shows_usage = generation.job.continuous_usage
        has_opened = False
        try:
            async for updates in generation.updates():
                _note(updates, record)
                is_finished = generation.is_finished
                usage = generation.usage.to_json() if shows_usage or is_finished else b""
                last = updates[-1] if is_finished else None
                chunks = b"" if has_opened else renderer.opening(usage)
                has_opened = True
                for update in updates:
                    chunks += renderer.chunk(update, usage, is_last=update is last)
                if chunks and not events.write_now(chunks):
                    await events.write(chunks)
        finally:
            beat.cancel()

    async def _answer_whole(
        self, job: Job, generation: Generation, renderer: Renderer, send: Send, record: RequestRecord
    ) -> None:
        choices: list[list[ChoiceUpdate]] = [[] for _ in range(job.num_choices)]
        async for updates in generation.updates():
            _note(updates, record)
            for update in updates:
                choices[update.index].append(update)
        await send_answer(send, 200, renderer.answer(choices, generation.usage.to_json()))


def _cache_salt(scope: Scope) -> str:
    """Who may share cached prompts. Cutting a long salt short could make two of them one."""
    salt = header(scope, b"x-cache-salt") or ""
    if len(salt) > _MAX_SALT_CHARS:
        raise ApiError(400, f"x-cache-salt is longer than {_MAX_SALT_CHARS} characters", param="x-cache-salt")
    return salt


def _note(updates: list[ChoiceUpdate], record: RequestRecord) -> None:
    for update in updates:
        if update.finish_reason == "error":
            message = update.error or "the engine failed on this request"
            raise ApiError(500 if update.error_param is None else 400, message, param=update.error_param)
        if update.token_ids:
            record.note_tokens()


def _overall_finish(generation: Generation) -> str:
    """One word for the log: how the answers ended, the most unusual first."""
    if generation.course.timed_out:
        return "timeout"
    reasons = set(generation.finish_reasons.values())
    return next(reason for reason in ("error", "abort", "length", "tool_calls", "stop") if reason in reasons)
