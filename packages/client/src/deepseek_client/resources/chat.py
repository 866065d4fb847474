"""`client.chat.completions`."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Unpack, overload

from deepseek_client.core import Core
from deepseek_client.params import ChatParams
from deepseek_client.streaming import AsyncStream, Stream
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.chat import ChatCompletion, ChatCompletionChunk, ChatMessage

Message = ChatMessage | Mapping[str, Any]
"""One turn: ours, or a dict such as `{"role": "user", "content": "Hello"}`."""

ChatStream = Stream[ChatCompletionChunk, ChatCompletion]
AsyncChatStream = AsyncStream[ChatCompletionChunk, ChatCompletion]


class ChatCompletions:
    """Conversations."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    @overload
    def create(
        self, *, messages: Iterable[Message], stream: Literal[False] = False, **params: Unpack[ChatParams]
    ) -> ChatCompletion: ...
    @overload
    def create(
        self, *, messages: Iterable[Message], stream: Literal[True], **params: Unpack[ChatParams]
    ) -> ChatStream: ...
    @overload
    def create(
        self, *, messages: Iterable[Message], stream: bool, **params: Unpack[ChatParams]
    ) -> ChatCompletion | ChatStream: ...
    def create(
        self, *, messages: Iterable[Message], stream: bool = False, **params: Unpack[ChatParams]
    ) -> ChatCompletion | ChatStream:
        """Answer a conversation: whole, or with `stream=True` as an iterator of chunks.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return self._transport.run(self._core.chat(list(messages), params))
        core = self._core.open_chat(list(messages), params)
        self._transport.run(core.start())
        return Stream(core, self._transport)


class AsyncChatCompletions:
    """Conversations."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    @overload
    async def create(
        self, *, messages: Iterable[Message], stream: Literal[False] = False, **params: Unpack[ChatParams]
    ) -> ChatCompletion: ...
    @overload
    async def create(
        self, *, messages: Iterable[Message], stream: Literal[True], **params: Unpack[ChatParams]
    ) -> AsyncChatStream: ...
    @overload
    async def create(
        self, *, messages: Iterable[Message], stream: bool, **params: Unpack[ChatParams]
    ) -> ChatCompletion | AsyncChatStream: ...
    async def create(
        self, *, messages: Iterable[Message], stream: bool = False, **params: Unpack[ChatParams]
    ) -> ChatCompletion | AsyncChatStream:
        """Answer a conversation: whole, or with `stream=True` as an iterator of chunks.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return await self._transport.run(self._core.chat(list(messages), params))
        core = self._core.open_chat(list(messages), params)
        await self._transport.run(core.start())
        return AsyncStream(core, self._transport)


class Chat:
    """`client.chat`."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self.completions = ChatCompletions(core, transport)


class AsyncChat:
    """`client.chat`."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self.completions = AsyncChatCompletions(core, transport)
