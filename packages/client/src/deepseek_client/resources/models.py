"""`client.models`."""

from deepseek_client.core import Core
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.models import Model, ModelList


class Models:
    """The models that the key may use."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

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

    async def list(self) -> ModelList:
        """All of them, under `.data`."""
        return await self._transport.run(self._core.models())

    async def retrieve(self, model: str) -> Model:
        """One, by its id.

        Raises:
            NotFoundError: there is none of that name.
        """
        return await self._transport.run(self._core.model(model))
