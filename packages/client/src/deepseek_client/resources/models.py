"""`client.models`."""

from deepseek_client.core import Core
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
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
