"""`client.responses`."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Unpack, overload

from deepseek_client.core import Core
from deepseek_client.endpoints import open_response, respond
from deepseek_client.params import ResponseParams
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
