"""`client.user`."""

from deepseek_client.core import Core
from deepseek_client.endpoints import balance
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.account import Balance


class User:
    """The account that the key belongs to."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    def balance(self) -> Balance:
        """What the account has left, as exact decimals."""
        return self._transport.run(balance(self._core))


class AsyncUser:
    """The account that the key belongs to."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    async def balance(self) -> Balance:
        """What the account has left, as exact decimals."""
        return await self._transport.run(balance(self._core))
