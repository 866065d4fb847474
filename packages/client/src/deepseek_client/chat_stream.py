"""What a caller holds while a chat answers as events: `chat.completions.stream`. Shells; the readings do the work."""

from collections.abc import AsyncIterator, Iterator
from typing import TypeGuard

from deepseek_client.events import ChatEvent, ContentDelta, Finish, ReasoningDelta, ToolCallDelta
from deepseek_client.streaming import AsyncStream, Stream, text_of
from deepseek_client.types.chat import ChatCompletion


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
