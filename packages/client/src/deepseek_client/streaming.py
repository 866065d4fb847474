"""What a caller holds while an answer streams: iterators of chunks, text or events, closed by `with` or by their end.

Shells; the stream core and the readings do the work.
"""

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from decimal import Decimal
from typing import Generic, NoReturn, Self, TypeGuard

from deepseek_client.events import ChatEvent, ContentDelta, Finish, ReasoningDelta, ToolCallDelta
from deepseek_client.readings import AnswerT, ItemT
from deepseek_client.stream_core import StreamCore
from deepseek_client.tee import DEFAULT_TEE_BUFFER, AsyncStreamBranch, StreamBranch, tee, tee_async
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.base import Seam, Usage
from deepseek_client.types.chat import ChatCompletion, Generation


class _StreamState(Generic[ItemT, AnswerT]):
    """What can be asked of a stream at any time, without waiting."""

    def __init__(self, core: StreamCore[ItemT, AnswerT]) -> None:
        self._core = core

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream is bound to its connection and cannot be copied or pickled: its snapshot can")

    @property
    def usage(self) -> Usage | None:
        """The token counts, once the server has sent them."""
        return self._core.reading.usage

    @property
    def cost(self) -> Decimal | None:
        """What it cost, by the client's price table, once it is over; None where that is not known."""
        return self._core.cost

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended; None while it has not."""
        return self._core.reading.finish_reasons.get(0)

    @property
    def snapshot(self) -> AnswerT:
        """All that has arrived, in the shape of a plain call's answer; built when asked for."""
        return self._core.answer()

    @property
    def request_id(self) -> str | None:
        """The id under which the server's logs know the request."""
        return self._core.request_id

    @property
    def retries_taken(self) -> int:
        """How often the request has been sent again."""
        return self._core.retries_taken

    @property
    def seams(self) -> tuple[Seam, ...]:
        """Where it broke and went on, with `resume=True`."""
        return self._core.seams

    @property
    def elapsed(self) -> float | None:
        """Seconds from the call to now, or to the stream's end; None before the request was sent."""
        return self._core.elapsed_s

    @property
    def headers(self) -> Mapping[str, str]:
        """The response's headers, names in lower case; empty before it has begun."""
        return self._core.headers


class Stream(_StreamState[ItemT, AnswerT]):
    """An answer as it comes. Iterate over it; leaving early (`close`, or the end of `with`) cancels it."""

    def __init__(self, core: StreamCore[ItemT, AnswerT], transport: SyncTransport) -> None:
        super().__init__(core)
        self._transport = transport

    def __iter__(self) -> Iterator[ItemT]:
        return self

    def __next__(self) -> ItemT:
        core = self._core
        if not core.items:
            self._transport.run(core.fill())
            if not core.items:
                raise StopIteration
        return core.take()

    def __enter__(self) -> Self:
        if not self._core.is_begun:
            self._transport.run(self._core.start())
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the answer. The server sees a disconnect if it was not done."""
        self._transport.run(self._core.close())

    def cancel(self) -> AnswerT:
        """Stop the answer at the server, and return what has arrived. Any thread or task may call it."""
        self.close()
        return self.snapshot

    def until_done(self) -> AnswerT:
        """Read what is left, and return the whole answer.

        Raises:
            StreamClosedError: the stream was closed before its end.
        """
        for _ in self:
            pass
        return self._core.whole_answer()

    def tee(self, n: int = 2, *, buffer: int = DEFAULT_TEE_BUFFER) -> tuple[StreamBranch[ItemT], ...]:
        """`n` iterators that each give every item from here on; the stream itself is then theirs to read.

        Read each in a thread or task of its own: one that is `buffer` items ahead of another waits for it.

        Raises:
            StreamError: while iterating, where waiting would never end: nobody, or the same task, reads the other one.
        """
        return tee(self, n, buffer)

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None and not sys.is_finalizing():
            core.abandon()


class AsyncStream(_StreamState[ItemT, AnswerT]):
    """An answer as it comes. Iterate over it; leaving early (`close`, or the end of `async with`) cancels it."""

    def __init__(self, core: StreamCore[ItemT, AnswerT], transport: AsyncTransport) -> None:
        super().__init__(core)
        self._transport = transport

    def __aiter__(self) -> AsyncIterator[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        core = self._core
        if not core.items:
            await self._transport.run(core.fill())
            if not core.items:
                raise StopAsyncIteration
        return core.take()

    async def __aenter__(self) -> Self:
        if not self._core.is_begun:
            await self._transport.run(self._core.start())
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the answer. The server sees a disconnect if it was not done."""
        await self._transport.run(self._core.close())

    async def cancel(self) -> AnswerT:
        """Stop the answer at the server, and return what has arrived. Any thread or task may call it."""
        await self.close()
        return self.snapshot

    async def until_done(self) -> AnswerT:
        """Read what is left, and return the whole answer.

        Raises:
            StreamClosedError: the stream was closed before its end.
        """
        async for _ in self:
            pass
        return self._core.whole_answer()

    def tee(self, n: int = 2, *, buffer: int = DEFAULT_TEE_BUFFER) -> tuple[AsyncStreamBranch[ItemT], ...]:
        """`n` iterators that each give every item from here on; the stream itself is then theirs to read.

        Read each in a thread or task of its own: one that is `buffer` items ahead of another waits for it.

        Raises:
            StreamError: while iterating, where waiting would never end: nobody, or the same task, reads the other one.
        """
        return tee_async(self, n, buffer)

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None and not sys.is_finalizing():
            core.abandon()


class TextStream(Stream[str, Generation]):
    """A generated text, piece by piece. The request is sent on entering `with`, or with the first piece."""

    @property
    def generation(self) -> Generation:
        """All that has arrived, as `generate` would have returned it."""
        return self.snapshot


class AsyncTextStream(AsyncStream[str, Generation]):
    """A generated text, piece by piece. The request is sent on entering `async with`, or with the first piece."""

    @property
    def generation(self) -> Generation:
        """All that has arrived, as `generate` would have returned it."""
        return self.snapshot


def text_of(answer: ChatCompletion) -> str:
    """The text of the first choice."""
    content = answer.choices[0].message.content if answer.choices else None
    if isinstance(content, str):
        return content
    return "".join(part.text or "" for part in content or ())


class ChatStream(Stream[ChatEvent, ChatCompletion]):
    """A chat's answer as typed events. The request is sent on entering `with`, or with the first event."""

    @property
    def text_stream(self) -> Iterator[str]:
        """The pieces of the first choice's text; all other events are passed over."""
        for event in self:
            if _is_text(event):
                yield event.text

    @property
    def reasoning_stream(self) -> Iterator[str]:
        """The pieces of the first choice's reasoning, up to where its text or a tool call begins.

        `text_stream`, or the stream itself, goes on from there.
        """
        for event in self:
            if _is_reasoning(event):
                yield event.text
            elif _ends_reasoning(event):
                self._core.give_back(event)
                return

    def get_final_completion(self) -> ChatCompletion:
        """Read what is left, and return the whole answer. Raises as `until_done` does."""
        return self.until_done()

    def get_final_text(self) -> str:
        """Read what is left, and return the first choice's whole text. Raises as `until_done` does."""
        return text_of(self.until_done())


class AsyncChatStream(AsyncStream[ChatEvent, ChatCompletion]):
    """A chat's answer as typed events. The request is sent on entering `async with`, or with the first event."""

    @property
    async def text_stream(self) -> AsyncIterator[str]:
        """The pieces of the first choice's text; all other events are passed over."""
        async for event in self:
            if _is_text(event):
                yield event.text

    @property
    async def reasoning_stream(self) -> AsyncIterator[str]:
        """The pieces of the first choice's reasoning, up to where its text or a tool call begins.

        `text_stream`, or the stream itself, goes on from there.
        """
        async for event in self:
            if _is_reasoning(event):
                yield event.text
            elif _ends_reasoning(event):
                self._core.give_back(event)
                return

    async def get_final_completion(self) -> ChatCompletion:
        """Read what is left, and return the whole answer. Raises as `until_done` does."""
        return await self.until_done()

    async def get_final_text(self) -> str:
        """Read what is left, and return the first choice's whole text. Raises as `until_done` does."""
        return text_of(await self.until_done())


def _is_text(event: ChatEvent) -> TypeGuard[ContentDelta]:
    return type(event) is ContentDelta and event.index == 0


def _is_reasoning(event: ChatEvent) -> TypeGuard[ReasoningDelta]:
    return type(event) is ReasoningDelta and event.index == 0


def _ends_reasoning(event: ChatEvent) -> bool:
    return isinstance(event, ContentDelta | ToolCallDelta | Finish) and event.index == 0
