"""What is known of the HTTP library: how to make its clients, what its failures mean. The one module that imports it.

A caller's own client may be httpx's or httpx2's (same API, another import name): nothing is used of it but its methods,
and exceptions are caught from whichever of the two is loaded.
"""

import sys
import time
from typing import Any

import httpx

from deepseek_client.errors import (
    CLASS_OF_PHASE,
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    ConnectError,
    DeepSeekError,
    Phase,
    TLSError,
)
from deepseek_client.request import HTTPRequest

MAX_REFUSAL_BYTES = 1024 * 1024
"""How much is read of an answer that is not the stream that was asked for."""

_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=30.0)


def make_client(transport: Any | None, *, trust_env: bool) -> httpx.Client:
    """A blocking client; `transport` is what it sends with, None a pool of connections."""
    return httpx.Client(limits=_LIMITS, trust_env=trust_env, transport=transport)


def make_async_client(transport: Any | None, *, trust_env: bool) -> httpx.AsyncClient:
    """A client for the running event loop; arguments as for `make_client`."""
    return httpx.AsyncClient(limits=_LIMITS, trust_env=trust_env, transport=transport)


def check_one(http_client: Any | None, transport: Any | None) -> None:
    """Refuse a client and a transport together.

    Raises:
        ConfigurationError: both were given.
    """
    if http_client is not None and transport is not None:
        raise ConfigurationError("http_client and transport: name one, since a client has a transport of its own")


def build(client: Any, request: HTTPRequest, timeouts: dict[str, float | None]) -> Any:
    """The library's own request."""
    return client.build_request(
        request.method,
        request.url,
        headers=dict(request.headers),
        content=request.body,
        extensions={"timeout": timeouts},
    )


def timeouts_of(request: HTTPRequest, deadline: float | None) -> tuple[dict[str, float | None], Phase]:
    """The library's timeouts until the response begins, and which of our limits the wait for it stands for."""
    limits = request.timeout
    left = None if deadline is None else max(deadline - time.monotonic(), 0.001)

    def capped(limit: float | None) -> float | None:
        return limit if left is None else left if limit is None else min(limit, left)

    read = capped(limits.first_token_s)
    phase: Phase = "total" if left is not None and read == left else "first_token"
    connect = capped(limits.connect_s)
    return {"connect": connect, "read": read, "write": capped(limits.idle_s), "pool": read}, phase


def headers_of(response: Any) -> dict[str, str]:
    """The headers of a response, names in lower case."""
    return {name.lower(): value for name, value in response.headers.items()}


def library_errors() -> tuple[type[Exception], ...]:
    """The failures of a request, in each of the two libraries that is loaded."""
    loaded = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return tuple(library.RequestError for library in loaded if library is not None)


def translate(error: Exception, url: str, phase: Phase) -> DeepSeekError:
    """One of the library's failures as one of ours. By name: the two libraries have the same names."""
    names = {cls.__name__ for cls in type(error).__mro__}
    for name in names & _PHASES.keys():
        return late(url, _PHASES[name])
    if "TimeoutException" in names:
        return late(url, phase)
    detail = str(error) or type(error).__name__
    if names & {"LocalProtocolError", "UnsupportedProtocol"}:
        return ConfigurationError(f"the request to {url} cannot be sent: {detail}")
    if "ConnectError" in names or "ProxyError" in names:
        if _is_tls(error):
            return TLSError(f"no secure connection to {url}: {detail}")
        return ConnectError(f"cannot reach {url}: {detail}. Is the server running, and is the base URL right?")
    return APIConnectionError(f"the connection to {url} broke: {detail}")


def _is_tls(error: BaseException | None) -> bool:
    """Whether TLS is what failed: the library says so by the cause alone."""
    while error is not None:
        if type(error).__name__.startswith("SSL"):
            return True
        error = error.__cause__ or error.__context__
    return False


_PHASES: dict[str, Phase] = {"ConnectTimeout": "connect", "PoolTimeout": "pool", "WriteTimeout": "write"}
_LATE: dict[Phase, str] = {
    "connect": "could not connect to {url} within timeout.connect_s",
    "pool": "no free connection for {url} within timeout.first_token_s",
    "write": "could not send the request to {url} in time",
    "first_token": "no data from {url} within timeout.first_token_s",
    "idle": "no data from {url} for timeout.idle_s",
    "total": "no complete answer from {url} within timeout.total_s",
}


def late(url: str, phase: Phase) -> APITimeoutError:
    """The failure of a limit that has passed."""
    return CLASS_OF_PHASE.get(phase, APITimeoutError)(_LATE[phase].format(url=url), phase=phase)
