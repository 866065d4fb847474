"""`client.completions`."""

from typing import Literal, Unpack, overload

from deepseek_client.core import Core
from deepseek_client.params import CompletionParams
from deepseek_client.streaming import AsyncStream, Stream
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.completions import Completion

Prompt = str | list[str] | list[int] | list[list[int]]
CompletionStream = Stream[Completion, Completion]
AsyncCompletionStream = AsyncStream[Completion, Completion]


class Completions:
    """Plain text, or token ids, to be continued."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    @overload
    def create(
        self, *, prompt: Prompt, stream: Literal[False] = False, **params: Unpack[CompletionParams]
    ) -> Completion: ...
    @overload
    def create(
        self, *, prompt: Prompt, stream: Literal[True], **params: Unpack[CompletionParams]
    ) -> CompletionStream: ...
    @overload
    def create(
        self, *, prompt: Prompt, stream: bool, **params: Unpack[CompletionParams]
    ) -> Completion | CompletionStream: ...
    def create(
        self, *, prompt: Prompt, stream: bool = False, **params: Unpack[CompletionParams]
    ) -> Completion | CompletionStream:
        """Continue a text: whole, or with `stream=True` as an iterator of pieces.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return self._transport.run(self._core.complete(prompt, params))
        core = self._core.open_completion(prompt, params)
        self._transport.run(core.start())
        return Stream(core, self._transport)


class AsyncCompletions:
    """Plain text, or token ids, to be continued."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    @overload
    async def create(
        self, *, prompt: Prompt, stream: Literal[False] = False, **params: Unpack[CompletionParams]
    ) -> Completion: ...
    @overload
    async def create(
        self, *, prompt: Prompt, stream: Literal[True], **params: Unpack[CompletionParams]
    ) -> AsyncCompletionStream: ...
    @overload
    async def create(
        self, *, prompt: Prompt, stream: bool, **params: Unpack[CompletionParams]
    ) -> Completion | AsyncCompletionStream: ...
    async def create(
        self, *, prompt: Prompt, stream: bool = False, **params: Unpack[CompletionParams]
    ) -> Completion | AsyncCompletionStream:
        """Continue a text: whole, or with `stream=True` as an iterator of pieces.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        if not stream:
            return await self._transport.run(self._core.complete(prompt, params))
        core = self._core.open_completion(prompt, params)
        await self._transport.run(core.start())
        return AsyncStream(core, self._transport)
