"""RawResponse and StreamingResponse: a call's answer with its status, headers and bytes, the parsed value on demand.

`raw` and `streaming` wrap a resource's method; the names `with_raw_response` and `with_streaming_response`, and what
they give, are as in the openai package. Below both a flow is watched from outside: `recorded` notes what passes, `held`
stops a flow at the first answer that the caller's own request got, and `resumed` goes on with it.
"""

import copy
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, ParamSpec, TypeVar, cast

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
from deepseek_client.error_mapping import request_id_of
from deepseek_client.errors import APIConnectionError, ResponseError

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


P = ParamSpec("P")


class _Answer:
    """What both kinds of answers know."""

    def __init__(self, record: Record) -> None:
        self._record = record

    @property
    def status_code(self) -> int:
        """The HTTP status, always of a success: others are raised."""
        return self._record.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The response's headers, names in lower case."""
        return self._record.headers

    @property
    def request_id(self) -> str | None:
        """The id under which the server's logs know the request."""
        return request_id_of(self._record.headers)

    @property
    def retries_taken(self) -> int:
        """How often the request had been sent before it succeeded."""
        return self._record.retries_taken

    @property
    def elapsed(self) -> timedelta:
        """From the call to the answer (of a stream: to its beginning), retries and waits included."""
        return timedelta(seconds=self._record.elapsed_s)


class RawResponse(_Answer, Generic[T]):
    """An answer that was read whole; of a stream, its beginning."""

    def __init__(self, record: Record, parsed: T | None, failure: ResponseError | None) -> None:
        super().__init__(record)
        self._parsed = parsed
        self._failure = failure

    @property
    def content(self) -> bytes:
        """The body; empty for a stream."""
        return self._record.content

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.content)

    def parse(self) -> T:
        """What the call gives without `with_raw_response`.

        Raises:
            ResponseError: the body is not what the contract names.
        """
        if self._failure is not None:
            raise self._failure
        return cast("T", self._parsed)


class _Driver:
    """In place of a resource's transport: every flow that it runs is watched."""

    def __init__(self, transport: Any, watch: Callable[[Flow[Any]], Flow[Any]]) -> None:
        self._transport = transport
        self._watch: Callable[[Flow[Any]], Flow[Any]] | None = watch

    def run(self, flow: Flow[Any]) -> Any:
        """Drive a flow: a value from the sync transport, a coroutine from the async one."""
        return self._transport.run(flow if self._watch is None else self._watch(flow))

    def release(self) -> None:
        """Watch no more: what the call gave, such as a stream, runs as ever."""
        self._watch = None


def _with_driver(method: Callable[..., Any], driver: _Driver) -> Callable[..., Any]:
    """The same method of a copy of its resource that uses the driver."""
    resource = copy.copy(cast("Any", method).__self__)
    resource._transport = driver  # noqa: SLF001  every resource has one
    return getattr(resource, method.__name__)


def _transport_of(method: Callable[..., Any]) -> Any:
    return cast("Any", method).__self__._transport  # noqa: SLF001


def raw(method: Callable[P, T]) -> Callable[P, RawResponse[T]]:
    """The method, giving a RawResponse."""

    def call(*args: P.args, **kwargs: P.kwargs) -> RawResponse[T]:
        record = Record()
        driver = _Driver(_transport_of(method), lambda flow: recorded(flow, record))
        try:
            answer = _with_driver(method, driver)(*args, **kwargs)
        except ResponseError as failure:
            if not record.status:
                raise
            return RawResponse(record, None, failure)
        finally:
            driver.release()
        return RawResponse(record, answer, None)

    return call


def async_raw(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[RawResponse[T]]]:
    """The method, giving a RawResponse."""

    async def call(*args: P.args, **kwargs: P.kwargs) -> RawResponse[T]:
        record = Record()
        driver = _Driver(_transport_of(method), lambda flow: recorded(flow, record))
        try:
            answer = await _with_driver(method, driver)(*args, **kwargs)
        except ResponseError as failure:
            if not record.status:
                raise
            return RawResponse(record, None, failure)
        finally:
            driver.release()
        return RawResponse(record, answer, None)

    return call


class StreamingResponse(_Answer, Generic[T]):
    """An answer whose body is read as it is asked for. It is closed with its `with` block."""

    def __init__(self, record: Record, waiting: Held, value: Any, driver: _Driver) -> None:
        super().__init__(record)
        self._waiting = waiting
        self._value = value
        self._driver = driver

    def iter_bytes(self) -> Iterator[bytes]:
        """The body, in the pieces in which it comes."""
        while chunk := self._driver.run(_read(self._waiting)):
            yield chunk

    def iter_lines(self) -> Iterator[str]:
        """The body's lines, without their ends."""
        lines = _Lines()
        for chunk in self.iter_bytes():
            yield from lines.feed(chunk)
        yield from lines.end()

    def read(self) -> bytes:
        """The whole body."""
        return self._driver.run(read_all(self._waiting.opened, self._waiting.effect.deadline))

    def parse(self) -> T:
        """What the call gives without `with_streaming_response`; of a body that nothing was read of yet."""
        value = self._driver.run(resumed(self._waiting))
        return value if self._value is self._waiting else self._value

    def close(self) -> None:
        """Let go of the response."""
        self._driver.run(_close(self._waiting))


class AsyncStreamingResponse(_Answer, Generic[T]):
    """An answer whose body is read as it is asked for. It is closed with its `async with` block."""

    def __init__(self, record: Record, waiting: Held, value: Any, driver: _Driver) -> None:
        super().__init__(record)
        self._waiting = waiting
        self._value = value
        self._driver = driver

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """The body, in the pieces in which it comes."""
        while chunk := await self._driver.run(_read(self._waiting)):
            yield chunk

    async def iter_lines(self) -> AsyncIterator[str]:
        """The body's lines, without their ends."""
        lines = _Lines()
        async for chunk in self.iter_bytes():
            for line in lines.feed(chunk):
                yield line
        for line in lines.end():
            yield line

    async def read(self) -> bytes:
        """The whole body."""
        return await self._driver.run(read_all(self._waiting.opened, self._waiting.effect.deadline))

    async def parse(self) -> T:
        """What the call gives without `with_streaming_response`; of a body that nothing was read of yet."""
        value = await self._driver.run(resumed(self._waiting))
        return value if self._value is self._waiting else self._value

    async def close(self) -> None:
        """Let go of the response."""
        await self._driver.run(_close(self._waiting))


class StreamingCall(Generic[T]):
    """A call that is sent on entering `with`."""

    def __init__(self, call: Callable[[], StreamingResponse[T]]) -> None:
        self._call = call
        self._response: StreamingResponse[T] | None = None

    def __enter__(self) -> StreamingResponse[T]:
        self._response = self._call()
        return self._response

    def __exit__(self, *failure: object) -> None:
        if self._response is not None:
            self._response.close()


class AsyncStreamingCall(Generic[T]):
    """A call that is sent on entering `async with`."""

    def __init__(self, call: Callable[[], Awaitable[AsyncStreamingResponse[T]]]) -> None:
        self._call = call
        self._response: AsyncStreamingResponse[T] | None = None

    async def __aenter__(self) -> AsyncStreamingResponse[T]:
        self._response = await self._call()
        return self._response

    async def __aexit__(self, *failure: object) -> None:
        if self._response is not None:
            await self._response.close()


def streaming(method: Callable[P, T]) -> Callable[P, StreamingCall[T]]:
    """The method, giving a StreamingResponse inside `with`."""

    def call(*args: P.args, **kwargs: P.kwargs) -> StreamingCall[T]:
        def send() -> StreamingResponse[T]:
            holder = _Holder()
            driver = _Driver(_transport_of(method), holder.watch)
            try:
                value = _with_driver(method, driver)(*args, **kwargs)
            finally:
                driver.release()
            return StreamingResponse(holder.record, holder.waiting, value, driver)

        return StreamingCall(send)

    return call


def async_streaming(method: Callable[P, Awaitable[T]]) -> Callable[P, AsyncStreamingCall[T]]:
    """The method, giving a StreamingResponse inside `async with`."""

    def call(*args: P.args, **kwargs: P.kwargs) -> AsyncStreamingCall[T]:
        async def send() -> AsyncStreamingResponse[T]:
            holder = _Holder()
            driver = _Driver(_transport_of(method), holder.watch)
            try:
                value = await _with_driver(method, driver)(*args, **kwargs)
            finally:
                driver.release()
            return AsyncStreamingResponse(holder.record, holder.waiting, value, driver)

        return AsyncStreamingCall(send)

    return call


class _Holder:
    """Keeps the flow that a call is held in."""

    def __init__(self) -> None:
        self.record = Record()
        self._waiting: Held | None = None

    @property
    def waiting(self) -> Held:
        assert self._waiting is not None, "a call that succeeded has an answer"
        return self._waiting

    def watch(self, flow: Flow[Any]) -> Flow[Any]:
        value = yield from held(flow, self.record)
        if isinstance(value, Held):
            self._waiting = value
        return value


def _read(waiting: Held) -> Flow[bytes]:
    chunk: bytes = yield Read(waiting.opened.body, waiting.effect.deadline, "total")
    return chunk


def _close(waiting: Held) -> Flow[None]:
    yield from let_go(waiting.opened)


class _Lines:
    """Bytes to lines, across their pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines]

    def end(self) -> list[str]:
        return [self._rest.decode("utf-8", "replace")] if self._rest else []
