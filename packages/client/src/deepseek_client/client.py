"""DeepSeek and AsyncDeepSeek: settings in, resources out."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, cast

from deepseek_client.accounting import UsageTotals
from deepseek_client.core import Core
from deepseek_client.exchange import Exchange
from deepseek_client.middleware import AsyncMiddleware, Middleware
from deepseek_client.params import GenerateParams
from deepseek_client.prices import PriceTable
from deepseek_client.raw import async_raw, async_streaming, raw, streaming
from deepseek_client.resources.chat import AsyncChat, Chat
from deepseek_client.resources.completions import AsyncCompletions, Completions
from deepseek_client.resources.files import AsyncFiles, Files
from deepseek_client.resources.fim import AsyncFim, Fim
from deepseek_client.resources.models import AsyncModels, Models
from deepseek_client.resources.responses import AsyncResponses, Responses
from deepseek_client.resources.tokens import AsyncTokens, Tokens
from deepseek_client.resources.tools import AsyncWebTools, WebTools
from deepseek_client.resources.user import AsyncUser, User
from deepseek_client.retries import Retry
from deepseek_client.settings import Profile, Settings, Timeout, read_settings
from deepseek_client.streaming import AsyncTextStream, TextStream
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.generate import Generation


class _SharedOptions(TypedDict, total=False):
    """The settings of both clients, all optional.

    Attributes:
        api_key: sent as a bearer token; DEEPSEEK_API_KEY by default. An engine without keys needs none. A function is
            asked for it at each attempt; it may be a coroutine function for AsyncDeepSeek.
        middleware: functions around each attempt, the outermost first; see `deepseek_client.middleware`.
        base_url: the server; DEEPSEEK_BASE_URL by default, then http://127.0.0.1:8080. `/v1` is added where the URL
            has no path.
        profile: `gateway` for our gateway or engine, `deepseek` for DeepSeek's cloud, `openai` for other servers;
            `auto` (default) is `deepseek` where the URL's host is api.deepseek.com, and finds out elsewhere.
        timeout: seconds for a whole call, or a Timeout.
        max_retries: sends after the first, 2 by default.
        default_model: the model of calls that name none; DEEPSEEK_MODEL by default, then the server's own default.
        default_headers: sent with every request.
        on_retry: called before each retry's wait with a `Retry`: the error, its number, the delay.
        prices: what answers cost, for `.cost` and `client.usage`; DeepSeek's own list at its cloud, none elsewhere.
    """

    base_url: str | None
    profile: Profile
    timeout: float | Timeout | None
    max_retries: int
    default_model: str | None
    default_headers: Mapping[str, str] | None
    on_retry: Callable[[Retry], None] | None
    prices: PriceTable | None


class Options(_SharedOptions, total=False):
    """The settings of DeepSeek."""

    api_key: str | Callable[[], str | None] | None
    middleware: Iterable[Middleware]


class AsyncOptions(_SharedOptions, total=False):
    """The settings of AsyncDeepSeek."""

    api_key: str | Callable[[], str | Awaitable[str | None] | None] | None
    middleware: Iterable[AsyncMiddleware]


class _Client:
    """What both clients share: settings, and what was learned about the server."""

    _core: Core

    @property
    def base_url(self) -> str:
        """The URL that paths are appended to."""
        return self._core.settings.base_url

    @property
    def usage(self) -> UsageTotals:
        """The tokens of all answers so far and what they cost; one count for a client and its `with_options` copies."""
        return self._core.ledger.totals

    def __repr__(self) -> str:
        settings = self._core.settings
        return f"{type(self).__name__}(base_url={settings.base_url!r}, api_key={settings.masked_key!r})"

    def _core_with(self, options: Options | AsyncOptions) -> Core:
        """A core with some settings changed; it keeps what was learned if the server stays the same."""
        settings = _changed(self._core.settings, cast("Mapping[str, Any]", options))
        is_same_server = (settings.base_url, settings.profile) == (
            self._core.settings.base_url,
            self._core.settings.profile,
        )
        exchange = Exchange(settings, budget=self._core.exchange.budget if is_same_server else None)
        return Core(exchange, self._core.knowledge if is_same_server else None, self._core.ledger)


def _changed(settings: Settings, options: Mapping[str, Any]) -> Settings:
    fresh = read_settings(**options)
    names = {*options, "key_provider"} if "api_key" in options else {*options}
    return replace(settings, **{name: getattr(fresh, name) for name in names})


class DeepSeek(_Client):
    """A client that blocks. Thread-safe; one is enough for a program.

    Args:
        http_client: an `httpx.Client` to send with (proxies, unix sockets, certificates); it stays yours to close.
        transport: in its place, an httpx transport; with `deepseek_client.asgi` an app in this process answers. It is
            closed with the client.
        **options: see `Options`.

    Raises:
        ConfigurationError: a setting that cannot work.
    """

    def __init__(
        self, *, http_client: Any | None = None, transport: Any | None = None, **options: Unpack[Options]
    ) -> None:
        settings = read_settings(**options)
        self._bind(Core(Exchange(settings)), SyncTransport(http_client, transport, trust_env=not settings.is_local))

    def _bind(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport
        self.chat = Chat(core, transport)
        self.completions = Completions(core, transport)
        self.fim = Fim(core, transport)
        self.models = Models(core, transport)
        self.responses = Responses(core, transport)
        self.files = Files(core, transport)
        self.tokens = Tokens(core, transport)
        self.tools = WebTools(core, transport)
        self.user = User(core, transport)

    def generate(self, prompt: str, *, max_tokens: int = 512, **params: Unpack[GenerateParams]) -> Generation:
        """Generate text for a prompt; `str()` of the result, or `.text`, is the text.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        return self._transport.run(self._core.generate(prompt, max_tokens, params))

    def generate_stream(self, prompt: str, *, max_tokens: int = 512, **params: Unpack[GenerateParams]) -> TextStream:
        """Generate text for a prompt, piece by piece: a context manager and an iterator of strings.

        Raises:
            DeepSeekError: on entering `with` or while iterating; see `deepseek_client.errors`.
        """
        return TextStream(self._core.open_text(prompt, max_tokens, params), self._transport)

    @property
    def with_raw_response(self) -> "DeepSeekWithRawResponse":
        """`generate`, giving its answer with status, headers and bytes; the resources have properties of this name."""
        return DeepSeekWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "DeepSeekWithStreamingResponse":
        """`generate`, giving an answer whose body is read as it is asked for; so have the resources."""
        return DeepSeekWithStreamingResponse(self)

    def with_options(self, **options: Unpack[Options]) -> Self:
        """A client with some settings changed, over the same connections."""
        copy = object.__new__(type(self))
        copy._bind(self._core_with(options), self._transport)
        return copy

    def close(self) -> None:
        """Close the connections, also of clients made by `with_options`."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncDeepSeek(_Client):
    """A client for asyncio; one is enough for a program, also across several `asyncio.run`.

    Args:
        http_client: an `httpx.AsyncClient` to send with (proxies, unix sockets, certificates); it stays yours to close.
        transport: in its place, an httpx transport; with `deepseek_client.asgi` an app in this process answers. It is
            closed with the client.
        **options: see `AsyncOptions`.

    Raises:
        ConfigurationError: a setting that cannot work.
    """

    def __init__(
        self, *, http_client: Any | None = None, transport: Any | None = None, **options: Unpack[AsyncOptions]
    ) -> None:
        settings = read_settings(**options)
        self._bind(Core(Exchange(settings)), AsyncTransport(http_client, transport, trust_env=not settings.is_local))

    def _bind(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport
        self.chat = AsyncChat(core, transport)
        self.completions = AsyncCompletions(core, transport)
        self.fim = AsyncFim(core, transport)
        self.models = AsyncModels(core, transport)
        self.responses = AsyncResponses(core, transport)
        self.files = AsyncFiles(core, transport)
        self.tokens = AsyncTokens(core, transport)
        self.tools = AsyncWebTools(core, transport)
        self.user = AsyncUser(core, transport)

    async def generate(self, prompt: str, *, max_tokens: int = 512, **params: Unpack[GenerateParams]) -> Generation:
        """Generate text for a prompt; `str()` of the result, or `.text`, is the text.

        Raises:
            DeepSeekError: see `deepseek_client.errors`.
        """
        return await self._transport.run(self._core.generate(prompt, max_tokens, params))

    def generate_stream(
        self, prompt: str, *, max_tokens: int = 512, **params: Unpack[GenerateParams]
    ) -> AsyncTextStream:
        """Generate text for a prompt, piece by piece: a context manager and an iterator of strings.

        Raises:
            DeepSeekError: on entering `async with` or while iterating; see `deepseek_client.errors`.
        """
        return AsyncTextStream(self._core.open_text(prompt, max_tokens, params), self._transport)

    @property
    def with_raw_response(self) -> "AsyncDeepSeekWithRawResponse":
        """`generate`, giving its answer with status, headers and bytes; the resources have properties of this name."""
        return AsyncDeepSeekWithRawResponse(self)

    @property
    def with_streaming_response(self) -> "AsyncDeepSeekWithStreamingResponse":
        """`generate`, giving an answer whose body is read as it is asked for; so have the resources."""
        return AsyncDeepSeekWithStreamingResponse(self)

    def with_options(self, **options: Unpack[AsyncOptions]) -> Self:
        """A client with some settings changed, over the same connections."""
        copy = object.__new__(type(self))
        copy._bind(self._core_with(options), self._transport)
        return copy

    async def close(self) -> None:
        """Close the connections of the running event loop, also of clients made by `with_options`."""
        await self._transport.close()

    async def aclose(self) -> None:
        """As `close`, under the name that asyncio's tools such as `contextlib.aclosing` call."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


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
