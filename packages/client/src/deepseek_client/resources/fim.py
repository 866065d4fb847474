"""`client.fim`."""

from typing import Literal, Unpack, overload

from deepseek_client.core import Core
from deepseek_client.params import FimParams
from deepseek_client.resources.completions import AsyncCompletionStream, CompletionStream
from deepseek_client.streaming import AsyncStream, Stream
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.completions import Completion


class Fim:
    """Fill in the middle: text or code between two pieces."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    @overload
    def create(
        self, *, prompt: str, suffix: str | None = None, stream: Literal[False] = False, **params: Unpack[FimParams]
    ) -> Completion: ...
    @overload
    def create(
        self, *, prompt: str, suffix: str | None = None, stream: Literal[True], **params: Unpack[FimParams]
    ) -> CompletionStream: ...
    @overload
    def create(
        self, *, prompt: str, suffix: str | None = None, stream: bool, **params: Unpack[FimParams]
    ) -> Completion | CompletionStream: ...
    def create(
        self, *, prompt: str, suffix: str | None = None, stream: bool = False, **params: Unpack[FimParams]
    ) -> Completion | CompletionStream:
        """Write what belongs between a prompt and a suffix: whole, or with `stream=True` as an iterator of pieces.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        merged = {**params, "suffix": suffix}
        if not stream:
            return self._transport.run(self._core.complete(prompt, merged))
        core = self._core.open_completion(prompt, merged)
        self._transport.run(core.start())
        return Stream(core, self._transport)


class AsyncFim:
    """Fill in the middle: text or code between two pieces."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    @overload
    async def create(
        self, *, prompt: str, suffix: str | None = None, stream: Literal[False] = False, **params: Unpack[FimParams]
    ) -> Completion: ...
    @overload
    async def create(
        self, *, prompt: str, suffix: str | None = None, stream: Literal[True], **params: Unpack[FimParams]
    ) -> AsyncCompletionStream: ...
    @overload
    async def create(
        self, *, prompt: str, suffix: str | None = None, stream: bool, **params: Unpack[FimParams]
    ) -> Completion | AsyncCompletionStream: ...
    async def create(
        self, *, prompt: str, suffix: str | None = None, stream: bool = False, **params: Unpack[FimParams]
    ) -> Completion | AsyncCompletionStream:
        """Write what belongs between a prompt and a suffix: whole, or with `stream=True` as an iterator of pieces.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        merged = {**params, "suffix": suffix}
        if not stream:
            return await self._transport.run(self._core.complete(prompt, merged))
        core = self._core.open_completion(prompt, merged)
        await self._transport.run(core.start())
        return AsyncStream(core, self._transport)
