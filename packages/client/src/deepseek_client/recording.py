"""A flow watched from outside: what it sent and what came back. So the answer's headers are had without its caller.

`recorded` notes what passes; `held` stops a flow at the first answer that the caller's own request got, and `resumed`
goes on with it. Both are flows themselves, so that sync and async share them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from deepseek_client.effects import (
    Effect,
    Fetch,
    Flow,
    Open,
    Opened,
    Read,
    Reply,
    is_event_stream,
    let_go,
)
from deepseek_client.errors import APIConnectionError

T = TypeVar("T")


@dataclass(slots=True)
class Record:
    """The last answer of a call.

    Attributes:
        status, headers, content: of the answer; a stream has no content here.
        retries_taken: how often the request had been sent before.
        elapsed_s: from the call to the answer, retries and waits included.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    content: bytes = b""
    retries_taken: int = 0
    elapsed_s: float = 0.0
    begun_at: float = field(default_factory=time.monotonic)

    def note(self, effect: Effect, answer: object) -> None:
        """Take notes of an answer."""
        if isinstance(effect, Fetch | Open) and isinstance(answer, Reply | Opened) and not effect.request.is_aside:
            self.status, self.headers = answer.status, answer.headers
            self.content = answer.body if isinstance(answer, Reply) else b""
            self.retries_taken = effect.request.retries_taken
            self.elapsed_s = time.monotonic() - self.begun_at


@dataclass(frozen=True, slots=True)
class Held:
    """A flow that waits for the answer to an effect, and the answer, whose body is not read."""

    flow: Flow[Any]
    effect: Fetch | Open
    opened: Opened


def recorded(flow: Flow[T], record: Record) -> Flow[T]:
    """The flow, with notes taken of its answers."""
    try:
        effect = next(flow)
        while True:
            try:
                answer: object = yield effect
            except APIConnectionError as failure:
                effect = flow.throw(failure)
            else:
                record.note(effect, answer)
                effect = flow.send(answer)
    except StopIteration as stop:
        return stop.value


def held(flow: Flow[T], record: Record) -> Flow[T | Held]:
    """The flow up to the answer of the caller's own request; failures and retries pass as ever."""
    try:
        effect = next(flow)
        while True:
            is_own = isinstance(effect, Fetch | Open) and not effect.request.is_aside
            try:
                answer: object = yield _kept_open(effect) if is_own else effect
            except APIConnectionError as failure:
                effect = flow.throw(failure)
                continue
            record.note(effect, answer)
            if is_own and isinstance(answer, Opened):
                assert isinstance(effect, Fetch | Open)
                return Held(flow, effect, answer)
            effect = flow.send(answer)
    except StopIteration as stop:
        return stop.value


def resumed(waiting: Held) -> Flow[Any]:
    """What the flow comes to, from where it was held."""
    opened, flow = waiting.opened, waiting.flow
    answer: Opened | Reply = opened
    if not (isinstance(waiting.effect, Open) and is_event_stream(opened.status, opened.headers)):
        answer = Reply(opened.status, opened.headers, (yield from read_all(opened, waiting.effect.deadline)))
    try:
        effect = flow.send(answer)
        while True:
            try:
                more: object = yield effect
            except APIConnectionError as failure:
                effect = flow.throw(failure)
            else:
                effect = flow.send(more)
    except StopIteration as stop:
        return stop.value


def read_all(opened: Opened, deadline: float | None) -> Flow[bytes]:
    """The rest of a body, which is then closed."""
    content = bytearray()
    while True:
        try:
            chunk: bytes = yield Read(opened.body, deadline, "total")
        except APIConnectionError:
            yield from let_go(opened)
            raise
        if not chunk:
            break
        content += chunk
    yield from let_go(opened)
    return bytes(content)


def _kept_open(effect: Effect) -> Effect:
    assert isinstance(effect, Fetch | Open)
    return Open(effect.request, effect.deadline, effect.middleware, is_any=True, place=effect.place)
