"""Answers beside chats: `client.completions`, `.fim`, `.responses`, and other forms of the client's own `generate`."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Unpack, overload

from deepseek_client.client import AsyncDeepSeek, DeepSeek
from deepseek_client.endpoints import open_response, respond
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
from deepseek_client.request import CompletionParams, FimParams, ResponseParams
from deepseek_client.resources import AsyncRoutes, Form, Routes
from deepseek_client.streaming import AsyncStream, Stream
from deepseek_client.types.base import WireModel
from deepseek_client.types.chat import Completion
from deepseek_client.types.responses import Response, ResponseEvent

Prompt = str | list[str] | list[int] | list[list[int]]
CompletionStream = Stream[Completion, Completion]
AsyncCompletionStream = AsyncStream[Completion, Completion]


class Completions(Routes):
    """Plain text, or token ids, to be continued."""

    with_raw_response = Form(lambda calls: CompletionsWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: CompletionsWithStreamingResponse(calls))

    @overload
    def create(
        self, *, prompt: Prompt, stream: Literal[False] = False, **params: Unpack[CompletionParams]
    ) -> Completion: ...
    @overload
    def create(
        self, *, prompt: Prompt, stream: Literal[True], **params: Unpack[CompletionParams]
    ) -> CompletionStream: ...
    @overload
    def create(
        self, *, prompt: Prompt, stream: bool, **params: Unpack[CompletionParams]
    ) -> Completion | CompletionStream: ...
    def create(
        self, *, prompt: Prompt, stream: bool = False, **params: Unpack[CompletionParams]
    ) -> Completion | CompletionStream:
        """Continue a text: whole, or with `stream=True` as an iterator of pieces.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return self._transport.run(self._core.complete(prompt, params))
        core = self._core.open_completion(prompt, params)
        self._transport.run(core.start())
        return Stream(core, self._transport)


class AsyncCompletions(AsyncRoutes):
    """Plain text, or token ids, to be continued."""

    with_raw_response = Form(lambda calls: AsyncCompletionsWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: AsyncCompletionsWithStreamingResponse(calls))

    @overload
    async def create(
        self, *, prompt: Prompt, stream: Literal[False] = False, **params: Unpack[CompletionParams]
    ) -> Completion: ...
    @overload
    async def create(
        self, *, prompt: Prompt, stream: Literal[True], **params: Unpack[CompletionParams]
    ) -> AsyncCompletionStream: ...
    @overload
    async def create(
        self, *, prompt: Prompt, stream: bool, **params: Unpack[CompletionParams]
    ) -> Completion | AsyncCompletionStream: ...
    async def create(
        self, *, prompt: Prompt, stream: bool = False, **params: Unpack[CompletionParams]
    ) -> Completion | AsyncCompletionStream:
        """Continue a text: whole, or with `stream=True` as an iterator of pieces.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return await self._transport.run(self._core.complete(prompt, params))
        core = self._core.open_completion(prompt, params)
        await self._transport.run(core.start())
        return AsyncStream(core, self._transport)


class CompletionsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: Completions) -> None:
        self.create = raw(resource.create)


class CompletionsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: Completions) -> None:
        self.create = streaming(resource.create)


class AsyncCompletionsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncCompletions) -> None:
        self.create = async_raw(resource.create)


class AsyncCompletionsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncCompletions) -> None:
        self.create = async_streaming(resource.create)


class Fim(Routes):
    """Fill in the middle: text or code between two pieces."""

    with_raw_response = Form(lambda calls: FimWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: FimWithStreamingResponse(calls))

    @overload
    def create(
        self, *, prompt: str, suffix: str | None = None, stream: Literal[False] = False, **params: Unpack[FimParams]
    ) -> Completion: ...
    @overload
    def create(
        self, *, prompt: str, suffix: str | None = None, stream: Literal[True], **params: Unpack[FimParams]
    ) -> CompletionStream: ...
    @overload
    def create(
        self, *, prompt: str, suffix: str | None = None, stream: bool, **params: Unpack[FimParams]
    ) -> Completion | CompletionStream: ...
    def create(
        self, *, prompt: str, suffix: str | None = None, stream: bool = False, **params: Unpack[FimParams]
    ) -> Completion | CompletionStream:
        """Write what belongs between a prompt and a suffix: whole, or with `stream=True` as an iterator of pieces.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        merged = {**params, "suffix": suffix}
        if not stream:
            return self._transport.run(self._core.complete(prompt, merged))
        core = self._core.open_completion(prompt, merged)
        self._transport.run(core.start())
        return Stream(core, self._transport)


class AsyncFim(AsyncRoutes):
    """Fill in the middle: text or code between two pieces."""

    with_raw_response = Form(lambda calls: AsyncFimWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: AsyncFimWithStreamingResponse(calls))

    @overload
    async def create(
        self, *, prompt: str, suffix: str | None = None, stream: Literal[False] = False, **params: Unpack[FimParams]
    ) -> Completion: ...
    @overload
    async def create(
        self, *, prompt: str, suffix: str | None = None, stream: Literal[True], **params: Unpack[FimParams]
    ) -> AsyncCompletionStream: ...
    @overload
    async def create(
        self, *, prompt: str, suffix: str | None = None, stream: bool, **params: Unpack[FimParams]
    ) -> Completion | AsyncCompletionStream: ...
    async def create(
        self, *, prompt: str, suffix: str | None = None, stream: bool = False, **params: Unpack[FimParams]
    ) -> Completion | AsyncCompletionStream:
        """Write what belongs between a prompt and a suffix: whole, or with `stream=True` as an iterator of pieces.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        merged = {**params, "suffix": suffix}
        if not stream:
            return await self._transport.run(self._core.complete(prompt, merged))
        core = self._core.open_completion(prompt, merged)
        await self._transport.run(core.start())
        return AsyncStream(core, self._transport)


class FimWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: Fim) -> None:
        self.create = raw(resource.create)


class FimWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: Fim) -> None:
        self.create = streaming(resource.create)


class AsyncFimWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncFim) -> None:
        self.create = async_raw(resource.create)


class AsyncFimWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncFim) -> None:
        self.create = async_streaming(resource.create)


class DeepSeekWithRawResponse:
    """`with_raw_response` of the client itself."""

    def __init__(self, client: DeepSeek) -> None:
        self.generate = raw(client.generate)


class DeepSeekWithStreamingResponse:
    """`with_streaming_response` of the client itself."""

    def __init__(self, client: DeepSeek) -> None:
        self.generate = streaming(client.generate)


class AsyncDeepSeekWithRawResponse:
    """`with_raw_response` of the client itself."""

    def __init__(self, client: AsyncDeepSeek) -> None:
        self.generate = async_raw(client.generate)


class AsyncDeepSeekWithStreamingResponse:
    """`with_streaming_response` of the client itself."""

    def __init__(self, client: AsyncDeepSeek) -> None:
        self.generate = async_streaming(client.generate)


Input = str | Iterable[WireModel | Mapping[str, Any]]
"""A text, or items: messages, function calls and their outputs, reasoning."""

ResponseStream = Stream[ResponseEvent, Response]
AsyncResponseStream = AsyncStream[ResponseEvent, Response]


class Responses(Routes):
    """Answers as lists of items. Stateless: each call sends the whole conversation."""

    with_raw_response = Form(lambda calls: ResponsesWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: ResponsesWithStreamingResponse(calls))

    @overload
    def create(self, *, input: Input, stream: Literal[False] = False, **params: Unpack[ResponseParams]) -> Response: ...
    @overload
    def create(self, *, input: Input, stream: Literal[True], **params: Unpack[ResponseParams]) -> ResponseStream: ...
    @overload
    def create(self, *, input: Input, stream: bool, **params: Unpack[ResponseParams]) -> Response | ResponseStream: ...
    def create(
        self,
        *,
        input: Input,  # noqa: A002  the wire's name
        stream: bool = False,
        **params: Unpack[ResponseParams],
    ) -> Response | ResponseStream:
        """Answer: whole, or with `stream=True` as an iterator of typed events, whose last holds the whole answer.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return self._transport.run(respond(self._core, input, params))
        core = open_response(self._core, input, params)
        self._transport.run(core.start())
        return Stream(core, self._transport)


class AsyncResponses(AsyncRoutes):
    """Answers as lists of items. Stateless: each call sends the whole conversation."""

    with_raw_response = Form(lambda calls: AsyncResponsesWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: AsyncResponsesWithStreamingResponse(calls))

    @overload
    async def create(
        self, *, input: Input, stream: Literal[False] = False, **params: Unpack[ResponseParams]
    ) -> Response: ...
    @overload
    async def create(
        self, *, input: Input, stream: Literal[True], **params: Unpack[ResponseParams]
    ) -> AsyncResponseStream: ...
    @overload
    async def create(
        self, *, input: Input, stream: bool, **params: Unpack[ResponseParams]
    ) -> Response | AsyncResponseStream: ...
    async def create(
        self,
        *,
        input: Input,  # noqa: A002  the wire's name
        stream: bool = False,
        **params: Unpack[ResponseParams],
    ) -> Response | AsyncResponseStream:
        """Answer: whole, or with `stream=True` as an iterator of typed events, whose last holds the whole answer.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return await self._transport.run(respond(self._core, input, params))
        core = open_response(self._core, input, params)
        await self._transport.run(core.start())
        return AsyncStream(core, self._transport)


class ResponsesWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: Responses) -> None:
        self.create = raw(resource.create)


class ResponsesWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: Responses) -> None:
        self.create = streaming(resource.create)


class AsyncResponsesWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncResponses) -> None:
        self.create = async_raw(resource.create)


class AsyncResponsesWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncResponses) -> None:
        self.create = async_streaming(resource.create)
