"""`client.models`, and `client.tokens`, which counts as they do."""

from collections.abc import Iterable
from typing import Unpack

from deepseek_client.core import Core
from deepseek_client.endpoints import TokenCount, count_tokens, estimate_tokens
from deepseek_client.params import CountParams
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
from deepseek_client.resources.chat import Message
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.models import Model, ModelList


class Models:
    """The models that the key may use."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "ModelsWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return ModelsWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "ModelsWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return ModelsWithStreamingResponse(self)

    def list(self) -> ModelList:
        """All of them, under `.data`."""
        return self._transport.run(self._core.models())

    def retrieve(self, model: str) -> Model:
        """One, by its id.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self._transport.run(self._core.model(model))


class AsyncModels:
    """The models that the key may use."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "AsyncModelsWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return AsyncModelsWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "AsyncModelsWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return AsyncModelsWithStreamingResponse(self)

    async def list(self) -> ModelList:
        """All of them, under `.data`."""
        return await self._transport.run(self._core.models())

    async def retrieve(self, model: str) -> Model:
        """One, by its id.

        Raises:
            NotFoundError: there is none of that name.
        """
        return await self._transport.run(self._core.model(model))


class ModelsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: Models) -> None:
        self.list = raw(resource.list)
        self.retrieve = raw(resource.retrieve)


class ModelsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: Models) -> None:
        self.list = streaming(resource.list)
        self.retrieve = streaming(resource.retrieve)


class AsyncModelsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncModels) -> None:
        self.list = async_raw(resource.list)
        self.retrieve = async_raw(resource.retrieve)


class AsyncModelsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncModels) -> None:
        self.list = async_streaming(resource.list)
        self.retrieve = async_streaming(resource.retrieve)


class Tokens:
    """How many tokens something takes."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "TokensWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return TokensWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "TokensWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return TokensWithStreamingResponse(self)

    def estimate(self, text: str) -> TokenCount:
        """About how many a text takes, without asking anyone; marked an estimate."""
        return estimate_tokens(text)

    def count(self, given: str | Iterable[Message], **params: Unpack[CountParams]) -> TokenCount:
        """How many a text, or a conversation under the model's template, takes, counted by the server.

        Raises:
            NotFoundError: the server does not count, as DeepSeek's cloud does not.
        """
        return self._transport.run(count_tokens(self._core, given, params))


class AsyncTokens:
    """How many tokens something takes."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "AsyncTokensWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return AsyncTokensWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "AsyncTokensWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return AsyncTokensWithStreamingResponse(self)

    def estimate(self, text: str) -> TokenCount:
        """About how many a text takes, without asking anyone; marked an estimate."""
        return estimate_tokens(text)

    async def count(self, given: str | Iterable[Message], **params: Unpack[CountParams]) -> TokenCount:
        """How many a text, or a conversation under the model's template, takes, counted by the server.

        Raises:
            NotFoundError: the server does not count, as DeepSeek's cloud does not.
        """
        return await self._transport.run(count_tokens(self._core, given, params))


class TokensWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: Tokens) -> None:
        self.count = raw(resource.count)


class TokensWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: Tokens) -> None:
        self.count = streaming(resource.count)


class AsyncTokensWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncTokens) -> None:
        self.count = async_raw(resource.count)


class AsyncTokensWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncTokens) -> None:
        self.count = async_streaming(resource.count)
