"""`client.user`."""

from deepseek_client.core import Core
from deepseek_client.endpoints import balance
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.account import Balance


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
