"""`client.responses`."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Unpack, overload

from deepseek_client.core import Core
from deepseek_client.endpoints import open_response, respond
from deepseek_client.params import ResponseParams
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
from deepseek_client.streaming import AsyncStream, Stream
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.base import WireModel
from deepseek_client.types.responses import Response, ResponseEvent

Input = str | Iterable[WireModel | Mapping[str, Any]]
"""A text, or items: messages, function calls and their outputs, reasoning."""

ResponseStream = Stream[ResponseEvent, Response]
AsyncResponseStream = AsyncStream[ResponseEvent, Response]


class Responses:
    """Answers as lists of items. Stateless: each call sends the whole conversation."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "ResponsesWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return ResponsesWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "ResponsesWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return ResponsesWithStreamingResponse(self)

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


class AsyncResponses:
    """Answers as lists of items. Stateless: each call sends the whole conversation."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "AsyncResponsesWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return AsyncResponsesWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "AsyncResponsesWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return AsyncResponsesWithStreamingResponse(self)

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
