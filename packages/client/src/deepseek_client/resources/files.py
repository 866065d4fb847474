"""`client.files`."""

from collections.abc import Mapping
from typing import Any, Unpack

from deepseek_client.endpoints import AsyncPager, FileInput, Pager, create_file, delete_file, list_files, retrieve_file
from deepseek_client.params import CallOptions, ListParams
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
from deepseek_client.resources import AsyncRoutes, Form, Routes
from deepseek_client.types.services import ExpiresAfter, FileDeleted, FileObject


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
