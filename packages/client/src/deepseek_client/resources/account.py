"""What a server offers beside answers: the account, the web (`client.tools`), models, counts of tokens, files."""

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from deepseek_client.endpoints import (
    AsyncPager,
    FileInput,
    Pager,
    TokenCount,
    balance,
    count_tokens,
    create_file,
    delete_file,
    estimate_tokens,
    fetch_page,
    list_files,
    retrieve_file,
    search,
)
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
from deepseek_client.request import CallOptions, CountParams, ListParams, SearchParams
from deepseek_client.resources import AsyncRoutes, Form, Routes
from deepseek_client.resources.chat import Message
from deepseek_client.types.services import (
    Balance,
    ExpiresAfter,
    FileDeleted,
    FileObject,
    Model,
    ModelList,
    SearchResults,
    WebPage,
)


class User(Routes):
    """The account that the key belongs to."""

    with_raw_response = Form(lambda calls: UserWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: UserWithStreamingResponse(calls))

    def balance(self) -> Balance:
        """What the account has left, as exact decimals."""
        return self._transport.run(balance(self._core))


class AsyncUser(AsyncRoutes):
    """The account that the key belongs to."""

    with_raw_response = Form(lambda calls: AsyncUserWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: AsyncUserWithStreamingResponse(calls))

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


class WebTools(Routes):
    """The web, as DeepSeek's cloud offers it to programs; billed by the call."""

    with_raw_response = Form(lambda calls: WebToolsWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: WebToolsWithStreamingResponse(calls))

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


class AsyncWebTools(AsyncRoutes):
    """The web, as DeepSeek's cloud offers it to programs; billed by the call."""

    with_raw_response = Form(lambda calls: AsyncWebToolsWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: AsyncWebToolsWithStreamingResponse(calls))

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


class Models(Routes):
    """The models that the key may use."""

    with_raw_response = Form(lambda calls: ModelsWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: ModelsWithStreamingResponse(calls))

    def list(self) -> ModelList:
        """All of them, under `.data`."""
        return self._transport.run(self._core.models())

    def retrieve(self, model: str) -> Model:
        """One, by its id.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self._transport.run(self._core.model(model))


class AsyncModels(AsyncRoutes):
    """The models that the key may use."""

    with_raw_response = Form(lambda calls: AsyncModelsWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: AsyncModelsWithStreamingResponse(calls))

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


class Tokens(Routes):
    """How many tokens something takes."""

    with_raw_response = Form(lambda calls: TokensWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: TokensWithStreamingResponse(calls))

    def estimate(self, text: str) -> TokenCount:
        """About how many a text takes, without asking anyone; marked an estimate."""
        return estimate_tokens(text)

    def count(self, given: str | Iterable[Message], **params: Unpack[CountParams]) -> TokenCount:
        """How many a text, or a conversation under the model's template, takes, counted by the server.

        Raises:
            NotFoundError: the server does not count, as DeepSeek's cloud does not.
        """
        return self._transport.run(count_tokens(self._core, given, params))


class AsyncTokens(AsyncRoutes):
    """How many tokens something takes."""

    with_raw_response = Form(lambda calls: AsyncTokensWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: AsyncTokensWithStreamingResponse(calls))

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


class Files(Routes):
    """Documents and images that messages refer to by `file_id`."""

    with_raw_response = Form(lambda calls: FilesWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: FilesWithStreamingResponse(calls))

    def create(
        self,
        *,
        file: FileInput,
        purpose: str = "user_data",
        expires_after: ExpiresAfter | Mapping[str, Any] | int | None = None,
        **params: Unpack[CallOptions],
    ) -> FileObject:
        """Upload a file: a path, a name with bytes, or an open file; `expires_after` seconds it is deleted."""
        return self._transport.run(create_file(self._core, file, purpose, expires_after, params))

    def list(self, **params: Unpack[ListParams]) -> Pager:
        """All of them, to iterate over; pages are asked for as they are needed."""
        return Pager(list_files(self._core, params), self._transport)

    def retrieve(self, file_id: str, **params: Unpack[CallOptions]) -> FileObject:
        """What is known of one."""
        return self._transport.run(retrieve_file(self._core, file_id, params))

    def delete(self, file_id: str, **params: Unpack[CallOptions]) -> FileDeleted:
        """Delete one."""
        return self._transport.run(delete_file(self._core, file_id, params))


class AsyncFiles(AsyncRoutes):
    """Documents and images that messages refer to by `file_id`."""

    with_raw_response = Form(lambda calls: AsyncFilesWithRawResponse(calls))
    with_streaming_response = Form(lambda calls: AsyncFilesWithStreamingResponse(calls))

    async def create(
        self,
        *,
        file: FileInput,
        purpose: str = "user_data",
        expires_after: ExpiresAfter | Mapping[str, Any] | int | None = None,
        **params: Unpack[CallOptions],
    ) -> FileObject:
        """Upload a file: a path, a name with bytes, or an open file; `expires_after` seconds it is deleted."""
        return await self._transport.run(create_file(self._core, file, purpose, expires_after, params))

    def list(self, **params: Unpack[ListParams]) -> AsyncPager:
        """All of them, to iterate over; pages are asked for as they are needed."""
        return AsyncPager(list_files(self._core, params), self._transport)

    async def retrieve(self, file_id: str, **params: Unpack[CallOptions]) -> FileObject:
        """What is known of one."""
        return await self._transport.run(retrieve_file(self._core, file_id, params))

    async def delete(self, file_id: str, **params: Unpack[CallOptions]) -> FileDeleted:
        """Delete one."""
        return await self._transport.run(delete_file(self._core, file_id, params))


class FilesWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: Files) -> None:
        self.create = raw(resource.create)
        self.retrieve = raw(resource.retrieve)
        self.delete = raw(resource.delete)


class FilesWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: Files) -> None:
        self.create = streaming(resource.create)
        self.retrieve = streaming(resource.retrieve)
        self.delete = streaming(resource.delete)


class AsyncFilesWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncFiles) -> None:
        self.create = async_raw(resource.create)
        self.retrieve = async_raw(resource.retrieve)
        self.delete = async_raw(resource.delete)


class AsyncFilesWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncFiles) -> None:
        self.create = async_streaming(resource.create)
        self.retrieve = async_streaming(resource.retrieve)
        self.delete = async_streaming(resource.delete)
