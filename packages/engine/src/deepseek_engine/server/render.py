"""Answers as bytes: what is constant in a stream is encoded once, and `usage` is the last key of every object.

A chunk is then three joined byte strings: of an update that is nothing but text, the text between what its choice's
chunks have around it. The gateway counts on the order: it cuts a usage that its caller did not ask
for off the end without decoding JSON.
"""

import secrets
import time
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any, Final, Protocol

import msgspec

from deepseek_engine.messages import TokenLogprobs
from deepseek_engine.server.chat_events import delta_of, message_of
from deepseek_engine.server.generation import ChoiceUpdate, WireFinish
from deepseek_engine.server.job import Job
from deepseek_engine.server.logprobs import LegacyLogprobs, chat_logprobs, join_legacy, prompt_candidates
from deepseek_engine.tokenizer import Tokenizer

_to_json: Final = msgspec.json.Encoder().encode
_MARK: Final = "\ufdd2"
"""Stands for the text where a chunk is taken apart; a noncharacter, in no model's name."""


class Renderer(Protocol):
    """One request's answers in the form of its endpoint."""

    def opening(self, usage: bytes) -> bytes:
        """Events that go before the first text."""
        ...

    def chunk(self, update: ChoiceUpdate, usage: bytes, *, is_last: bool) -> bytes:
        """The event of one update; nothing if it would say nothing. `is_last`: every answer has ended."""
        ...

    def closing(self, usage: bytes) -> bytes:
        """Events between the last text and `[DONE]`."""
        ...

    def answer(self, choices: Sequence[Sequence[ChoiceUpdate]], usage: bytes) -> bytes:
        """The whole answer: all updates of each choice."""
        ...


class _Base:
    """What the three endpoints share."""

    id_prefix: str
    chunk_object: str
    answer_object: str

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        self._job = job
        self._tokenizer = tokenizer
        head = {"id": f"{self.id_prefix}-{secrets.token_hex(16)}", "object": self.chunk_object}
        rest = {"created": int(time.time()), "model": job.model}
        self._event_head = b"data: " + _to_json(head | rest)[:-1]
        self._answer_head = _to_json(head | {"object": self.answer_object} | rest)[:-1]
        self._is_plain = not (job.continuous_usage or job.return_token_ids)
        self._around_text: dict[int, tuple[bytes, bytes]] = {}

    def chunk(self, update: ChoiceUpdate, usage: bytes, *, is_last: bool) -> bytes:
        """The event of one update; nearly all are text and nothing else."""
        is_text = update.text and not (update.finish_reason or update.logprobs or update.prompt_logprobs)
        if not is_text or not self._is_plain:
            return self._chunk(update, usage, is_last=is_last)
        around = self._around_text.get(update.index)
        if around is None:
            head, _, tail = self._chunk(ChoiceUpdate(update.index, _MARK), b"", is_last=False).partition(
                _to_json(_MARK)
            )
            around = self._around_text[update.index] = (head, tail)
        return around[0] + _to_json(update.text) + around[1]

    def _chunk(self, update: ChoiceUpdate, usage: bytes, *, is_last: bool) -> bytes:
        raise NotImplementedError

    def _says_something(self, update: ChoiceUpdate) -> bool:
        wants_all = self._job.continuous_usage or self._job.return_token_ids or bool(update.logprobs)
        return bool(update.text or update.events or update.finish_reason or (wants_all and update.token_ids))

    def _continuous(self, usage: bytes) -> bytes:
        return b',"usage":' + usage if self._job.continuous_usage else b""

    def _token_ids(self, updates: Sequence[ChoiceUpdate]) -> bytes:
        if not self._job.return_token_ids:
            return b""
        return b',"token_ids":' + _to_json([token_id for update in updates for token_id in update.token_ids])


class _ChoicesBase(_Base):
    """The two endpoints of OpenAI's form, with a list of choices."""

    def closing(self, usage: bytes) -> bytes:
        """The usage event, if it was asked for."""
        if not self._job.include_usage:
            return b""
        return self._event_head + b',"choices":[],"usage":' + usage + b"}\n\n"

    def _event(self, choice: bytes, usage: bytes) -> bytes:
        return self._event_head + b',"choices":[' + choice + b"]" + usage + b"}\n\n"

    def _whole(self, choices: Sequence[bytes], usage: bytes) -> bytes:
        return self._answer_head + b',"choices":[' + b",".join(choices) + b'],"usage":' + usage + b"}"


class ChatRenderer(_ChoicesBase):
    """`chat.completion` and its chunks."""

    id_prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    answer_object = "chat.completion"

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        super().__init__(job, tokenizer)
        self._is_parsed = job.parser is not None and job.parser.is_needed
        tools = None if job.parser is None else job.parser.format.tools
        self._has_short_ids = tools is not None and tools.has_short_ids

    def opening(self, usage: bytes) -> bytes:
        """Each choice's role."""
        usage = self._continuous(usage)
        delta = b',"delta":{"role":"assistant","content":""},"finish_reason":null}'
        return b"".join(self._event(b'{"index":%d' % index + delta, usage) for index in range(self._job.num_choices))

    def _chunk(self, update: ChoiceUpdate, usage: bytes, *, is_last: bool) -> bytes:  # noqa: ARG002  _Base's
        """What is new in `delta`."""
        if not self._says_something(update):
            return b""
        if self._is_parsed:
            delta = _to_json(delta_of(update.events, is_short=self._has_short_ids))
        else:
            delta = b'{"content":' + _to_json(update.text) + b"}" if update.text or not update.finish_reason else b"{}"
        choice = (
            b'{"index":%d,"delta":' % update.index + delta + self._logprobs([update]) + _finish(update.finish_reason)
        )
        return self._event(choice + self._token_ids([update]) + b"}", self._continuous(usage))

    def answer(self, choices: Sequence[Sequence[ChoiceUpdate]], usage: bytes) -> bytes:
        """Each choice's message."""
        rendered: list[bytes] = []
        for index, updates in enumerate(choices):
            head = b'{"index":%d,"message":' % index + self._message(updates) + self._logprobs(updates)
            rendered.append(head + _finish(updates[-1].finish_reason) + self._token_ids(updates) + b"}")
        return self._whole(rendered, usage)

    def _message(self, updates: Sequence[ChoiceUpdate]) -> bytes:
        if self._is_parsed:
            events = [event for update in updates for event in update.events]
            return _to_json(message_of(events, is_short=self._has_short_ids))
        text = _to_json("".join(update.text for update in updates))
        return b'{"role":"assistant","content":' + text + b"}"

    def _logprobs(self, updates: Sequence[ChoiceUpdate]) -> bytes:
        """DeepSeek's form: tokens of the reasoning apart; tags and tool calls are among the content's."""
        if not any(update.logprobs for update in updates):
            return b""
        content: list[tuple[int, TokenLogprobs]] = []
        reasoning: list[tuple[int, TokenLogprobs]] = []
        for update in updates:
            if update.logprobs:
                flags = chain(update.is_reasoning, repeat(False))
                for token_id, entry, is_reasoning in zip(update.token_ids, update.logprobs, flags, strict=False):
                    (reasoning if is_reasoning else content).append((token_id, entry))
        both = {"content": chat_logprobs(self._tokenizer, content)}
        if reasoning:
            both["reasoning_content"] = chat_logprobs(self._tokenizer, reasoning)
        return b',"logprobs":' + _to_json(both)


class CompletionRenderer(_ChoicesBase):
    """`text_completion`, streamed and whole."""

    id_prefix = "cmpl"
    chunk_object = "text_completion"
    answer_object = "text_completion"

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        super().__init__(job, tokenizer)
        self._logprobs = [LegacyLogprobs(tokenizer) for _ in range(job.num_choices)]
        self._num_echoed = [0] * job.num_choices  # prompt tokens whose log-probabilities each choice has given

    def opening(self, usage: bytes) -> bytes:
        """The echoed prompts."""
        usage = self._continuous(usage)
        events: list[bytes] = []
        for index in range(self._job.num_choices):
            prompt = self._job.prompts[index // self._job.num_choices_per_prompt]
            if prompt.echo or prompt.echoes_logprobs:
                logprobs = self._legacy([self._echoed(index, [None])]) if prompt.echoes_logprobs else b""
                head = b'{"index":%d,"text":' % index + _to_json(prompt.echo)
                events.append(self._event(head + logprobs + b',"finish_reason":null}', usage))
        return b"".join(events)

    def _chunk(self, update: ChoiceUpdate, usage: bytes, *, is_last: bool) -> bytes:  # noqa: ARG002  _Base's
        """New text in `text`; log-probabilities of an echoed prompt go to all of its choices."""
        if update.prompt_logprobs:
            first = update.index - update.index % self._job.num_choices_per_prompt
            return b"".join(
                self._event(
                    b'{"index":%d,"text":""' % index
                    + self._legacy([self._echoed(index, update.prompt_logprobs)])
                    + b',"finish_reason":null}',
                    self._continuous(usage),
                )
                for index in range(first, first + self._job.num_choices_per_prompt)
            )
        if not self._says_something(update):
            return b""
        choice = b'{"index":%d,"text":' % update.index + _to_json(update.text)
        choice += self._legacy_logprobs([update]) + _finish(update.finish_reason) + self._token_ids([update]) + b"}"
        return self._event(choice, self._continuous(usage))

    def answer(self, choices: Sequence[Sequence[ChoiceUpdate]], usage: bytes) -> bytes:
        """Each choice's text."""
        rendered: list[bytes] = []
        per_prompt = self._job.num_choices_per_prompt
        for index, updates in enumerate(choices):
            prompt, first = self._job.prompts[index // per_prompt], index - index % per_prompt
            read = [entry for own in choices[first : first + per_prompt] for u in own for entry in u.prompt_logprobs]
            text = _to_json(prompt.echo + "".join(update.text for update in updates))
            echoed = [self._echoed(index, [None, *read])] if prompt.echoes_logprobs else []
            choice = b'{"index":%d,"text":' % index + text + self._legacy_logprobs(updates, echoed)
            if prompt.params.prompt_logprobs is not None and not prompt.echoes_logprobs:
                candidates = prompt_candidates(self._tokenizer, prompt.token_ids[: len(read) + 1], read)
                choice += b',"prompt_logprobs":' + _to_json(candidates)
            rendered.append(choice + _finish(updates[-1].finish_reason) + self._token_ids(updates) + b"}")
        return self._whole(rendered, usage)

    def _legacy_logprobs(self, updates: Sequence[ChoiceUpdate], echoed: Sequence[dict[str, Any]] = ()) -> bytes:
        parts = [
            self._logprobs[update.index].next(update.token_ids, update.logprobs)
            for update in updates
            if update.logprobs
        ]
        return self._legacy([*echoed, *parts]) if echoed or parts else b""

    def _echoed(self, index: int, entries: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """The lists of the next prompt tokens of a choice."""
        start = self._num_echoed[index]
        self._num_echoed[index] += len(entries)
        prompt = self._job.prompts[index // self._job.num_choices_per_prompt]
        return self._logprobs[index].next(prompt.token_ids[start : start + len(entries)], entries)

    def _legacy(self, parts: Sequence[dict[str, Any]]) -> bytes:
        return b',"logprobs":' + _to_json(join_legacy(parts))


class GenerationRenderer(_Base):
    """`generation` and its chunks; the last event always has the usage."""

    id_prefix = "gen"
    chunk_object = "generation.chunk"
    answer_object = "generation"

    def opening(self, usage: bytes) -> bytes:  # noqa: ARG002  Renderer's
        """Nothing."""
        return b""

    def _chunk(self, update: ChoiceUpdate, usage: bytes, *, is_last: bool) -> bytes:
        """New text in `text`."""
        if not self._says_something(update):
            return b""
        body = b',"text":' + _to_json(update.text) + _finish(update.finish_reason) + self._token_ids([update])
        usage = b',"usage":' + usage if is_last else self._continuous(usage)
        return self._event_head + body + usage + b"}\n\n"

    def closing(self, usage: bytes) -> bytes:  # noqa: ARG002  Renderer's
        """Nothing."""
        return b""

    def answer(self, choices: Sequence[Sequence[ChoiceUpdate]], usage: bytes) -> bytes:
        """The text."""
        (updates,) = choices
        text = b',"text":' + _to_json("".join(update.text for update in updates))
        rest = _finish(updates[-1].finish_reason) + self._token_ids(updates)
        return self._answer_head + text + rest + b',"usage":' + usage + b"}"


def _finish(reason: WireFinish | None) -> bytes:
    return b',"finish_reason":null' if reason is None else b',"finish_reason":"%s"' % reason.encode()
