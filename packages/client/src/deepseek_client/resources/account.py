"""What a server offers beside answers: `client.user`, `client.tools` (the web), `client.models`, `client.tokens`."""

from collections.abc import Iterable
from typing import Unpack

from deepseek_client.core import Core
from deepseek_client.endpoints import TokenCount, balance, count_tokens, estimate_tokens, fetch_page, search
from deepseek_client.params import CallOptions, CountParams, SearchParams
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
from deepseek_client.resources.chat import Message
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.services import Balance, Model, ModelList, SearchResults, WebPage


class User:
    """The account that the key belongs to."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "UserWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return UserWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "UserWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return UserWithStreamingResponse(self)

    def balance(self) -> Balance:
        """What the account has left, as exact decimals."""
        return self._transport.run(balance(self._core))


class AsyncUser:
    """The account that the key belongs to."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "AsyncUserWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return AsyncUserWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "AsyncUserWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return AsyncUserWithStreamingResponse(self)

    async def balance(self) -> Balance:
        """What the account has left, as exact decimals."""
        return await self._transport.run(balance(self._core))


class UserWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: User) -> None:
        self.balance = raw(resource.balance)


class UserWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: User) -> None:
        self.balance = streaming(resource.balance)


class AsyncUserWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncUser) -> None:
        self.balance = async_raw(resource.balance)


class AsyncUserWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncUser) -> None:
        self.balance = async_streaming(resource.balance)


class WebTools:
    """The web, as DeepSeek's cloud offers it to programs; billed by the call."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "WebToolsWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return WebToolsWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "WebToolsWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return WebToolsWithStreamingResponse(self)

    def search(self, query: str, **params: Unpack[SearchParams]) -> SearchResults:
        """Find pages. `count` is how many, `need_content` asks for their text as well.

        Raises:
            NotFoundError: the server has no search.
        """
        return self._transport.run(search(self._core, query, params))

    def fetch(self, url: str, **params: Unpack[CallOptions]) -> WebPage:
        """Read one page, as markdown.

        Raises:
            NotFoundError: the server cannot fetch.
        """
        return self._transport.run(fetch_page(self._core, url, params))


class AsyncWebTools:
    """The web, as DeepSeek's cloud offers it to programs; billed by the call."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "AsyncWebToolsWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return AsyncWebToolsWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "AsyncWebToolsWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return AsyncWebToolsWithStreamingResponse(self)

    async def search(self, query: str, **params: Unpack[SearchParams]) -> SearchResults:
        """Find pages. `count` is how many, `need_content` asks for their text as well.

        Raises:
            NotFoundError: the server has no search.
        """
        return await self._transport.run(search(self._core, query, params))

    async def fetch(self, url: str, **params: Unpack[CallOptions]) -> WebPage:
        """Read one page, as markdown.

        Raises:
            NotFoundError: the server cannot fetch.
        """
        return await self._transport.run(fetch_page(self._core, url, params))


class WebToolsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: WebTools) -> None:
        self.search = raw(resource.search)
        self.fetch = raw(resource.fetch)


class WebToolsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: WebTools) -> None:
        self.search = streaming(resource.search)
        self.fetch = streaming(resource.fetch)


class AsyncWebToolsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncWebTools) -> None:
        self.search = async_raw(resource.search)
        self.fetch = async_raw(resource.fetch)


class AsyncWebToolsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncWebTools) -> None:
        self.search = async_streaming(resource.search)
        self.fetch = async_streaming(resource.fetch)


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
