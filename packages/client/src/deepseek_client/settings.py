"""What a client is told: arguments first, then DEEPSEEK_* variables, then defaults. Read once, at construction."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from deepseek_client.errors import ConfigurationError

Profile = Literal["auto", "gateway", "deepseek", "openai"]
"""Which dialect the server speaks: our gateway or engine, DeepSeek's cloud, any other OpenAI-compatible server; `auto`
takes api.deepseek.com for DeepSeek's cloud, and finds out about others by asking."""

DEEPSEEK_HOST = "api.deepseek.com"

DEFAULT_BASE_URL = "http://127.0.0.1:8080"
"""Where `deepseek-gateway up` and `deepseek-server` listen."""


@dataclass(frozen=True, slots=True)
class Timeout:
    """The limits of one call, each in seconds. None is no limit.

    Attributes:
        connect_s: to reach the server.
        first_token_s: from sending the request to the first data of a stream, or to the answer of a plain call.
            DeepSeek queues a request for up to 600 s and counts on the caller to wait.
        idle_s: between two data events of a stream. Keep-alive comments do not count as data, so a stuck server is
            noticed; the time that the caller takes over an event does not count either.
        total_s: for the whole call, retries and waits included.
    """

    connect_s: float | None = 10.0
    first_token_s: float | None = 630.0
    idle_s: float | None = 120.0
    total_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect_s", "first_token_s", "idle_s", "total_s"):
            value: float | None = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigurationError(f"timeout: {name}={value} must be a positive number of seconds, or None")


def as_timeout(value: "float | Timeout | None") -> Timeout:
    """A number limits the whole call; None lifts the limits on waiting for tokens, but not the one on connecting."""
    if isinstance(value, Timeout):
        return value
    if value is None:
        return Timeout(first_token_s=None, idle_s=None)
    return replace(Timeout(), total_s=float(value))


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one client, checked."""

    base_url: str
    api_key: str | None = field(repr=False)
    profile: Profile
    timeout: Timeout
    max_retries: int
    default_model: str | None
    default_headers: Mapping[str, str] = field(repr=False)
    key_provider: Callable[[], Any] | None = field(default=None, repr=False)
    """Gives the key of each attempt, in place of `api_key`; a coroutine function for the async client."""
    middleware: tuple[Any, ...] = field(default=(), repr=False)
    prices: Any = None
    """The price table that the caller gave; None is the built-in one, at DeepSeek's cloud only."""

    max_concurrency: int | None = None
    """How many requests may be in flight at once."""

    resume: bool = False
    """Whether streams that break go on where they can."""

    on_retry: Callable[[Any], None] | None = field(default=None, repr=False)
    """Told of each retry before its wait."""

    def to_options(self) -> dict[str, Any]:
        """The arguments that give these settings again, in another process too.

        A key that is the environment's is left out: the other process reads its own.
        """
        options = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "key_provider"}
        options["default_headers"] = dict(self.default_headers)
        if self.key_provider is not None:
            options["api_key"] = self.key_provider
        elif self.api_key == checked_key(os.environ.get("DEEPSEEK_API_KEY")):
            del options["api_key"]
        return options

    @property
    def masked_key(self) -> str | None:
        """The key's last four characters, enough to tell keys apart."""
        if self.key_provider is not None:
            return "asked for at each attempt"
        if self.api_key is None:
            return None
        return f"...{self.api_key[-4:]}" if len(self.api_key) >= 16 else "..."

    @property
    def is_deepseek(self) -> bool:
        """Whether the server is DeepSeek's cloud, which has routes under `/beta` and charges by its own list."""
        if self.profile == "auto":
            return urlsplit(self.base_url).hostname == DEEPSEEK_HOST
        return self.profile == "deepseek"

    def url_of(self, path: str) -> str:
        """The URL of a path: relative to the base URL, or, with a slash in front, to the server's own root."""
        if path.startswith("/"):
            return self.base_url.removesuffix("/v1").removesuffix("/beta") + path
        return f"{self.base_url}/{path}"

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, where no proxy is to be asked."""
        return urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1")


def read_settings(
    *,
    api_key: str | Callable[[], Any] | None = None,
    base_url: str | None = None,
    profile: Profile = "auto",
    timeout: "float | Timeout | None" = Timeout(),
    max_retries: int = 2,
    default_model: str | None = None,
    default_headers: Mapping[str, str] | None = None,
    middleware: Iterable[Any] = (),
    prices: Any = None,
    max_concurrency: int | None = None,
    resume: bool = False,
    on_retry: Callable[[Any], None] | None = None,
) -> Settings:
    """Settle arguments, DEEPSEEK_API_KEY, DEEPSEEK_BASE_URL, DEEPSEEK_MODEL and defaults.

    Raises:
        ConfigurationError: a value that cannot work, by its name.
    """
    if profile not in get_args(Profile):
        raise ConfigurationError(f"profile={profile!r} must be one of {', '.join(get_args(Profile))}")
    if max_retries < 0:
        raise ConfigurationError(f"max_retries={max_retries} must be 0 or more")
    if max_concurrency is not None and max_concurrency < 1:
        raise ConfigurationError(f"max_concurrency={max_concurrency} must be 1 or more, or None for no limit")
    return Settings(
        base_url=_checked_url(base_url or os.environ.get("DEEPSEEK_BASE_URL") or DEFAULT_BASE_URL, profile),
        api_key=None
        if callable(api_key)
        else checked_key(api_key if api_key is not None else os.environ.get("DEEPSEEK_API_KEY")),
        profile=profile,
        timeout=as_timeout(timeout),
        max_retries=max_retries,
        default_model=default_model or os.environ.get("DEEPSEEK_MODEL") or None,
        default_headers=MappingProxyType(dict(default_headers or {})),
        key_provider=api_key if callable(api_key) else None,
        middleware=tuple(middleware),
        prices=prices,
        max_concurrency=max_concurrency,
        resume=resume,
        on_retry=on_retry,
    )


def _checked_url(url: str, profile: Profile) -> str:
    """The URL that paths are appended to. One without a path gets `/v1`, which every server but DeepSeek's needs."""
    url = url.strip().rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"base_url={url!r} must start with http:// or https:// and name a host")
    try:
        _ = parts.port
    except ValueError as error:
        raise ConfigurationError(f"base_url={url!r}: {error}") from error
    if parts.query or parts.fragment:
        raise ConfigurationError(f"base_url={url!r} must end with its path, without ? and #")
    is_deepseek = profile == "deepseek" or (profile == "auto" and parts.hostname == DEEPSEEK_HOST)
    return url if parts.path or is_deepseek else f"{url}/v1"


def checked_key(key: str | None) -> str | None:
    """The key without blanks around it; None where there is none.

    Raises:
        ConfigurationError: it holds what no header can.
    """
    key = (key or "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError("api_key (or DEEPSEEK_API_KEY) holds characters that no key has; was it copied whole?")
    return key or None
