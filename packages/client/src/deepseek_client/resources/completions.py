"""Plain text in, plain text out: `client.completions`, `client.fim`, and other forms of the client's own `generate`."""

from typing import Literal, Unpack, overload

from deepseek_client.client import AsyncDeepSeek, DeepSeek
from deepseek_client.core import Core
from deepseek_client.params import CompletionParams, FimParams
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
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

    @property
    def with_raw_response(self) -> "CompletionsWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return CompletionsWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "CompletionsWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return CompletionsWithStreamingResponse(self)

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

    @property
    def with_raw_response(self) -> "AsyncCompletionsWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return AsyncCompletionsWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "AsyncCompletionsWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return AsyncCompletionsWithStreamingResponse(self)

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


class CompletionsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: Completions) -> None:
        self.create = raw(resource.create)


class CompletionsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: Completions) -> None:
        self.create = streaming(resource.create)


class AsyncCompletionsWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncCompletions) -> None:
        self.create = async_raw(resource.create)


class AsyncCompletionsWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncCompletions) -> None:
        self.create = async_streaming(resource.create)


class Fim:
    """Fill in the middle: text or code between two pieces."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    @property
    def with_raw_response(self) -> "FimWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return FimWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "FimWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return FimWithStreamingResponse(self)

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

    @property
    def with_raw_response(self) -> "AsyncFimWithRawResponse":
        """The same calls, each giving its answer with status, headers and bytes: a RawResponse."""
        return AsyncFimWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "AsyncFimWithStreamingResponse":
        """The same calls, each giving an answer whose body is read as it is asked for: a StreamingResponse."""
        return AsyncFimWithStreamingResponse(self)

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


class FimWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: Fim) -> None:
        self.create = raw(resource.create)


class FimWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `with`."""

    def __init__(self, resource: Fim) -> None:
        self.create = streaming(resource.create)


class AsyncFimWithRawResponse:
    """`with_raw_response`: the same calls, each giving a RawResponse."""

    def __init__(self, resource: AsyncFim) -> None:
        self.create = async_raw(resource.create)


class AsyncFimWithStreamingResponse:
    """`with_streaming_response`: the same calls, each giving a StreamingResponse inside `async with`."""

    def __init__(self, resource: AsyncFim) -> None:
        self.create = async_streaming(resource.create)


class DeepSeekWithRawResponse:
    """`with_raw_response` of the client itself."""

    def __init__(self, client: DeepSeek) -> None:
        self.generate = raw(client.generate)


class DeepSeekWithStreamingResponse:
    """`with_streaming_response` of the client itself."""

    def __init__(self, client: DeepSeek) -> None:
        self.generate = streaming(client.generate)


class AsyncDeepSeekWithRawResponse:
    """`with_raw_response` of the client itself."""

    def __init__(self, client: AsyncDeepSeek) -> None:
        self.generate = async_raw(client.generate)


class AsyncDeepSeekWithStreamingResponse:
    """`with_streaming_response` of the client itself."""

    def __init__(self, client: AsyncDeepSeek) -> None:
        self.generate = async_streaming(client.generate)
