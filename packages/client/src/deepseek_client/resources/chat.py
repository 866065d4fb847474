"""`client.chat.completions`. What parses and what calls functions is imported by the first call that does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from deepseek_client.core import Core
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
from deepseek_client.request import DEFAULT_MAX_ROUNDS, ChatParams, ToolParams
from deepseek_client.resources import AsyncRoutes, Form, Routes
from deepseek_client.streaming import AsyncChatStream, AsyncStream, ChatStream, Stream
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.chat import ChatCompletion, ChatCompletionChunk, ChatMessage

if TYPE_CHECKING:
    from deepseek_client.rounds import ParsedCompletion, ToolRun
    from deepseek_client.tools import Tool

T = TypeVar("T")

Message = ChatMessage | Mapping[str, Any]
"""One turn: ours, or a dict such as `{"role": "user", "content": "Hello"}`."""

ChunkStream = Stream[ChatCompletionChunk, ChatCompletion]
AsyncChunkStream = AsyncStream[ChatCompletionChunk, ChatCompletion]


class ChatCompletions(Routes):
    """Conversations."""

    with_raw_response = Form(lambda calls: ChatCompletionsWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: ChatCompletionsWithStreamingResponse(calls))

    @overload
    def create(
        self, *, messages: Iterable[Message], stream: Literal[False] = False, **params: Unpack[ChatParams]
    ) -> ChatCompletion: ...
    @overload
    def create(
        self, *, messages: Iterable[Message], stream: Literal[True], **params: Unpack[ChatParams]
    ) -> ChunkStream: ...
    @overload
    def create(
        self, *, messages: Iterable[Message], stream: bool, **params: Unpack[ChatParams]
    ) -> ChatCompletion | ChunkStream: ...
    def create(
        self, *, messages: Iterable[Message], stream: bool = False, **params: Unpack[ChatParams]
    ) -> ChatCompletion | ChunkStream:
        """Answer a conversation: whole, or with `stream=True` as an iterator of chunks.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return self._transport.run(self._core.chat(list(messages), params))
        core = self._core.open_chat(list(messages), params)
        self._transport.run(core.start())
        return Stream(core, self._transport)

    def stream(
        self, *, messages: Iterable[Message], keep_alives: bool = False, **params: Unpack[ChatParams]
    ) -> ChatStream:
        """Answer a conversation as typed events: a context manager and an iterator; see `deepseek_client.events`.

        Args:
            messages: the conversation.
            keep_alives: also give an event for each sign of life that the server sends while the request waits.
            **params: as for `create`; usage is asked for unless `stream_options` says otherwise.

        Raises:
            DeepSeekError: on entering `with` or while iterating; see `deepseek_client.errors`.
        """
        return ChatStream(self._core.open_events(list(messages), params, keep_alives=keep_alives), self._transport)

    def continue_prefix(
        self,
        *,
        messages: Iterable[Message],
        prefix: str,
        reasoning: str | None = None,
        **params: Unpack[ChatParams],
    ) -> ChatCompletion:
        """Answer a conversation with an answer that begins with `prefix`; the prefix is part of what comes back.

        Args:
            messages: the conversation, up to the turn that is to be answered.
            prefix: how the answer begins, such as a fence of code; with `stop` at the next fence only code follows.
            reasoning: the reasoning that led to the prefix, where the answer had some.
            **params: as for `create`.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        return self._transport.run(self._core.continue_prefix(list(messages), prefix, reasoning, params))

    def parse(
        self, *, messages: Iterable[Message], response_model: type[T], repairs: int = 0, **params: Unpack[ChatParams]
    ) -> ParsedCompletion[T]:
        """Answer a conversation with a value of a type: a pydantic model, a dataclass, `list[int]`, a Literal.

        The server is asked to hold the model to the type's schema; one that cannot is told it in the prompt. Blank
        answers are asked for again; with `repairs`, so are wrong ones, with what is wrong.

        Raises:
            FinishReasonError: the answer ended early.
            BlankJSONError, ResponseValidationError: it says something else.
        """
        from deepseek_client.rounds import parse

        return self._transport.run(parse(self._core, messages, response_model, repairs, params))

    def run_tools(
        self,
        *,
        messages: Iterable[Message],
        tools: Iterable[Tool | Callable[..., Any]],
        max_rounds: int = DEFAULT_MAX_ROUNDS,
        **params: Unpack[ToolParams],
    ) -> ToolRun:
        """Answer a conversation with the help of functions: see `deepseek_client.tool`.

        The model's reasoning is kept in the conversation, and a function that raises is told to the model.

        Raises:
            ToolRoundsError: the model still calls functions after `max_rounds` answers.
        """
        from deepseek_client.rounds import run_tools

        flow = run_tools(self._core, messages, tools, max_rounds, params, is_async=False)
        return self._transport.run(flow)


class AsyncChatCompletions(AsyncRoutes):
    """Conversations."""

    with_raw_response = Form(lambda calls: AsyncChatCompletionsWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: AsyncChatCompletionsWithStreamingResponse(calls))

    @overload
    async def create(
        self, *, messages: Iterable[Message], stream: Literal[False] = False, **params: Unpack[ChatParams]
    ) -> ChatCompletion: ...
    @overload
    async def create(
        self, *, messages: Iterable[Message], stream: Literal[True], **params: Unpack[ChatParams]
    ) -> AsyncChunkStream: ...
    @overload
    async def create(
        self, *, messages: Iterable[Message], stream: bool, **params: Unpack[ChatParams]
    ) -> ChatCompletion | AsyncChunkStream: ...
    async def create(
        self, *, messages: Iterable[Message], stream: bool = False, **params: Unpack[ChatParams]
    ) -> ChatCompletion | AsyncChunkStream:
        """Answer a conversation: whole, or with `stream=True` as an iterator of chunks.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return await self._transport.run(self._core.chat(list(messages), params))
        core = self._core.open_chat(list(messages), params)
        await self._transport.run(core.start())
        return AsyncStream(core, self._transport)

    def stream(
        self, *, messages: Iterable[Message], keep_alives: bool = False, **params: Unpack[ChatParams]
    ) -> AsyncChatStream:
        """Answer a conversation as typed events: a context manager and an iterator; see `deepseek_client.events`.

        Args:
            messages: the conversation.
            keep_alives: also give an event for each sign of life that the server sends while the request waits.
            **params: as for `create`; usage is asked for unless `stream_options` says otherwise.

        Raises:
            DeepSeekError: on entering `with` or while iterating; see `deepseek_client.errors`.
        """
        return AsyncChatStream(self._core.open_events(list(messages), params, keep_alives=keep_alives), self._transport)

    async def continue_prefix(
        self,
        *,
        messages: Iterable[Message],
        prefix: str,
        reasoning: str | None = None,
        **params: Unpack[ChatParams],
    ) -> ChatCompletion:
        """Answer a conversation with an answer that begins with `prefix`; the prefix is part of what comes back.

        Args:
            messages: the conversation, up to the turn that is to be answered.
            prefix: how the answer begins, such as a fence of code; with `stop` at the next fence only code follows.
            reasoning: the reasoning that led to the prefix, where the answer had some.
            **params: as for `create`.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        return await self._transport.run(self._core.continue_prefix(list(messages), prefix, reasoning, params))

    async def parse(
        self, *, messages: Iterable[Message], response_model: type[T], repairs: int = 0, **params: Unpack[ChatParams]
    ) -> ParsedCompletion[T]:
        """Answer a conversation with a value of a type: a pydantic model, a dataclass, `list[int]`, a Literal.

        The server is asked to hold the model to the type's schema; one that cannot is told it in the prompt. Blank
        answers are asked for again; with `repairs`, so are wrong ones, with what is wrong.

        Raises:
            FinishReasonError: the answer ended early.
            BlankJSONError, ResponseValidationError: it says something else.
        """
        from deepseek_client.rounds import parse

        return await self._transport.run(parse(self._core, messages, response_model, repairs, params))

    async def run_tools(
        self,
        *,
        messages: Iterable[Message],
        tools: Iterable[Tool | Callable[..., Any]],
        max_rounds: int = DEFAULT_MAX_ROUNDS,
        **params: Unpack[ToolParams],
    ) -> ToolRun:
        """Answer a conversation with the help of functions: see `deepseek_client.tool`.

        The model's reasoning is kept in the conversation, and a function that raises is told to the model.

        Raises:
            ToolRoundsError: the model still calls functions after `max_rounds` answers.
        """
        from deepseek_client.rounds import run_tools

        flow = run_tools(self._core, messages, tools, max_rounds, params, is_async=True)
        return await self._transport.run(flow)


class Chat:
    """`client.chat`."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self.completions = ChatCompletions(core, transport)


class AsyncChat:
    """`client.chat`."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self.completions = AsyncChatCompletions(core, transport)


class ChatCompletionsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: ChatCompletions) -> None:
        self.create = raw(resource.create)
        self.continue_prefix = raw(resource.continue_prefix)
        self.parse = raw(resource.parse)
        self.run_tools = raw(resource.run_tools)


class ChatCompletionsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: ChatCompletions) -> None:
        self.create = streaming(resource.create)
        self.continue_prefix = streaming(resource.continue_prefix)
        self.parse = streaming(resource.parse)
        self.run_tools = streaming(resource.run_tools)


class AsyncChatCompletionsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncChatCompletions) -> None:
        self.create = async_raw(resource.create)
        self.continue_prefix = async_raw(resource.continue_prefix)
        self.parse = async_raw(resource.parse)
        self.run_tools = async_raw(resource.run_tools)


class AsyncChatCompletionsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncChatCompletions) -> None:
        self.create = async_streaming(resource.create)
        self.continue_prefix = async_streaming(resource.continue_prefix)
        self.parse = async_streaming(resource.parse)
        self.run_tools = async_streaming(resource.run_tools)
