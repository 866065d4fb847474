"""DeepSeek and AsyncDeepSeek: settings in, resources out.

Making a client imports neither the HTTP library nor pydantic: what a call needs is imported by the first one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Self, TypedDict, TypeVar, Unpack, cast, overload

from deepseek_client.errors import ConfigurationError
from deepseek_client.settings import Profile, Settings, Timeout, read_settings

T = TypeVar("T")


class Deferred(Generic[T]):
    """An attribute of each instance, made by a function of the instance. Of two threads that ask, the first one wins.

    Args:
        make: gives the value.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Self | T:
        if instance is None:
            return self
        return instance.__dict__.setdefault(self._name, self._make(instance))


class Resource(Deferred[T]):
    """A client's attribute for a group of routes: a class of `deepseek_client.resources`, named as `module.Class`."""

    def __init__(self, name: str) -> None:
        module, _, cls = name.partition(".")

        def make(client: Any) -> T:
            found = getattr(import_module(f"deepseek_client.resources.{module}"), cls)
            return found(client._core, client._transport)  # noqa: SLF001  every client has both

        super().__init__(make)


if TYPE_CHECKING:
    from deepseek_client.core import Core
    from deepseek_client.middleware import AsyncMiddleware, Middleware
    from deepseek_client.pacing import Retry
    from deepseek_client.prices import PriceTable, UsageTotals
    from deepseek_client.request import GenerateParams
    from deepseek_client.resources.account import (
        AsyncFiles,
        AsyncModels,
        AsyncTokens,
        AsyncUser,
        AsyncWebTools,
        Files,
        Models,
        Tokens,
        User,
        WebTools,
    )
    from deepseek_client.resources.chat import AsyncChat, Chat
    from deepseek_client.resources.completions import (
        AsyncCompletions,
        AsyncDeepSeekWithRawResponse,
        AsyncDeepSeekWithStreamingResponse,
        AsyncFim,
        AsyncResponses,
        Completions,
        DeepSeekWithRawResponse,
        DeepSeekWithStreamingResponse,
        Fim,
        Responses,
    )
    from deepseek_client.streaming import AsyncTextStream, TextStream
    from deepseek_client.transport import AsyncTransport, SyncTransport
    from deepseek_client.types.chat import Generation


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
        max_concurrency: requests in flight at once, over all threads, or in each event loop; more wait their turn,
            which counts towards `timeout`. A stream counts until it ends or is closed. None is no limit.
        resume: whether streams that break go on, where the server can; calls may say otherwise. See docs/client.md.
        default_model: the model of calls that name none; DEEPSEEK_MODEL by default, then the server's own default.
        default_headers: sent with every request.
        on_retry: called before each retry's wait with a `Retry`: the error, its number, the delay.
        prices: what answers cost, for `.cost` and `client.usage`; DeepSeek's own list at its cloud, none elsewhere.
    """

    base_url: str | None
    profile: Profile
    timeout: float | Timeout | None
    max_retries: int
    max_concurrency: int | None
    resume: bool
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

    _transport: Any

    def __init__(self, settings: Settings, http_client: Any | None, transport: Any | None) -> None:
        if http_client is not None and transport is not None:
            raise ConfigurationError("http_client and transport: name one, since a client has a transport of its own")
        self._settings = settings
        self._http = (http_client, transport)

    @property
    def base_url(self) -> str:
        """The URL that paths are appended to."""
        return self._settings.base_url

    @property
    def usage(self) -> UsageTotals:
        """The tokens of all answers so far and what they cost; one count for a client and its `with_options` copies."""
        return self._core.ledger.totals

    def __repr__(self) -> str:
        settings = self._settings
        return f"{type(self).__name__}(base_url={settings.base_url!r}, api_key={settings.masked_key!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """As its settings: the copy makes connections of its own, counts its own usage, and reads its own key."""
        if self._http != (None, None):
            raise TypeError(
                f"{type(self).__name__} with an http_client or transport cannot be copied or pickled: make one there"
            )
        return _remade, (type(self), self._settings.to_options())

    def __copy__(self) -> Self:
        return self._copy_with({})

    @Deferred
    def _core(self) -> Core:
        from deepseek_client.core import Core
        from deepseek_client.exchange import Exchange

        return Core(Exchange(self._settings))

    def _may_use_proxies(self) -> bool:
        _ = self._core  # made before the transport: whoever copies a client that has one shares its core too
        return not self._settings.is_local

    def _copy_with(self, options: Options | AsyncOptions) -> Self:
        """A client with some settings changed; it keeps what was learned if the server stays the same."""
        from deepseek_client.core import Core
        from deepseek_client.exchange import Exchange

        old, settings = self._core, _changed(self._settings, cast("Mapping[str, Any]", options))
        is_same_server = (settings.base_url, settings.profile) == (old.settings.base_url, old.settings.profile)
        copy = object.__new__(type(self))
        exchange = Exchange(
            settings,
            budget=old.exchange.budget if is_same_server else None,
            limiter=None if "max_concurrency" in options else old.exchange.limiter,
        )
        core = Core(exchange, old.knowledge if is_same_server else None, old.ledger)
        copy.__dict__.update(_settings=settings, _http=self._http, _core=core, _transport=self._transport)
        return copy


def _remade(cls: type[Any], options: Mapping[str, Any]) -> Any:
    return cls(**options)


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

    chat: Resource[Chat] = Resource("chat.Chat")
    completions: Resource[Completions] = Resource("completions.Completions")
    fim: Resource[Fim] = Resource("completions.Fim")
    models: Resource[Models] = Resource("account.Models")
    responses: Resource[Responses] = Resource("completions.Responses")
    files: Resource[Files] = Resource("account.Files")
    tokens: Resource[Tokens] = Resource("account.Tokens")
    tools: Resource[WebTools] = Resource("account.WebTools")
    user: Resource[User] = Resource("account.User")

    def __init__(
        self, *, http_client: Any | None = None, transport: Any | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(read_settings(**options), http_client, transport)

    @Deferred
    def _transport(self) -> SyncTransport:
        from deepseek_client.transport import SyncTransport

        return SyncTransport(*self._http, trust_env=self._may_use_proxies())

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
        from deepseek_client.streaming import TextStream

        return TextStream(self._core.open_text(prompt, max_tokens, params), self._transport)

    @property
    def with_raw_response(self) -> DeepSeekWithRawResponse:
        """`generate`, giving its answer with status, headers and bytes; the resources have properties of this name."""
        from deepseek_client.resources import completions as answers

        return answers.DeepSeekWithRawResponse(self)

    @property
    def with_streaming_response(self) -> DeepSeekWithStreamingResponse:
        """`generate`, giving an answer whose body is read as it is asked for; so have the resources."""
        from deepseek_client.resources import completions as answers

        return answers.DeepSeekWithStreamingResponse(self)

    def with_options(self, **options: Unpack[Options]) -> Self:
        """A client with some settings changed, over the same connections."""
        return self._copy_with(options)

    def close(self) -> None:
        """Close the connections, also of clients made by `with_options`."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
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

    chat: Resource[AsyncChat] = Resource("chat.AsyncChat")
    completions: Resource[AsyncCompletions] = Resource("completions.AsyncCompletions")
    fim: Resource[AsyncFim] = Resource("completions.AsyncFim")
    models: Resource[AsyncModels] = Resource("account.AsyncModels")
    responses: Resource[AsyncResponses] = Resource("completions.AsyncResponses")
    files: Resource[AsyncFiles] = Resource("account.AsyncFiles")
    tokens: Resource[AsyncTokens] = Resource("account.AsyncTokens")
    tools: Resource[AsyncWebTools] = Resource("account.AsyncWebTools")
    user: Resource[AsyncUser] = Resource("account.AsyncUser")

    def __init__(
        self, *, http_client: Any | None = None, transport: Any | None = None, **options: Unpack[AsyncOptions]
    ) -> None:
        super().__init__(read_settings(**options), http_client, transport)

    @Deferred
    def _transport(self) -> AsyncTransport:
        from deepseek_client.transport import AsyncTransport

        return AsyncTransport(*self._http, trust_env=self._may_use_proxies())

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
        from deepseek_client.streaming import AsyncTextStream

        return AsyncTextStream(self._core.open_text(prompt, max_tokens, params), self._transport)

    @property
    def with_raw_response(self) -> AsyncDeepSeekWithRawResponse:
        """`generate`, giving its answer with status, headers and bytes; the resources have properties of this name."""
        from deepseek_client.resources import completions as answers

        return answers.AsyncDeepSeekWithRawResponse(self)

    @property
    def with_streaming_response(self) -> AsyncDeepSeekWithStreamingResponse:
        """`generate`, giving an answer whose body is read as it is asked for; so have the resources."""
        from deepseek_client.resources import completions as answers

        return answers.AsyncDeepSeekWithStreamingResponse(self)

    def with_options(self, **options: Unpack[AsyncOptions]) -> Self:
        """A client with some settings changed, over the same connections."""
        return self._copy_with(options)

    async def close(self) -> None:
        """Close the connections of the running event loop, also of clients made by `with_options`."""
        await self._transport.close()

    async def aclose(self) -> None:
        """As `close`, under the name that asyncio's tools such as `contextlib.aclosing` call."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()
