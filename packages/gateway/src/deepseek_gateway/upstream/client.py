"""The one module that imports the HTTP client.

aiohttp costs a tenth of httpx's CPU a request, and its reads can be cancelled and resumed without losing bytes.
"""

import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from typing import Self

import aiohttp
from pydantic import SecretStr

from deepseek_gateway.errors import UnreachableError, UpstreamCutError, UpstreamError
from deepseek_gateway.upstream.address import UpstreamAddress

READ_BUFFER_BYTES = 64 * 1024
"""Bytes of an answer read ahead of a slow caller; aiohttp stops reading from the engine at twice this."""

IDLE_CONNECTION_S = 4.0
"""Servers close idle connections after 5 s (uvicorn's default): ours go first, so that none is reused as it dies."""

_FAULTS = (aiohttp.ClientError, OSError, TimeoutError, RuntimeError)
"""RuntimeError: aiohttp's word for a read on a connection that is closed."""


class Answer:
    """An engine's response: its head, and its body piece by piece."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.content_type = response.headers.get("content-type", "application/json")

    @property
    def retry_after_s(self) -> float | None:
        """What the engine asks callers to wait."""
        try:
            return float(self._response.headers["retry-after"])
        except (KeyError, ValueError):
            return None

    async def read(self) -> bytes:
        """The next bytes, as soon as there are any; empty at the end. Cancelling loses none.

        Raises:
            UpstreamCutError: the connection broke.
        """
        try:
            return await self._response.content.readany()
        except _FAULTS as error:
            if left := self._take_left():
                return left
            raise UpstreamCutError(f"the engine's answer broke off: {_describe(error)}") from error

    def _take_left(self) -> bytes:
        """Bytes that came before a break. aiohttp keeps them and raises first: text and usage would be lost."""
        buffer: deque[bytes] | None = getattr(self._response.content, "_buffer", None)
        if not buffer:
            return b""
        left = b"".join(buffer)
        buffer.clear()
        return left

    async def read_all(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            UpstreamCutError: the connection broke, or the body is larger than `limit`.
        """
        parts: list[bytes] = []
        size = 0
        while part := await self.read():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise UpstreamCutError(f"the engine's answer is larger than {limit} bytes")
        return b"".join(parts)

    def close(self) -> None:
        """Drop the connection unless the body was read to its end; then it is free for the next request already."""
        self._response.close()


@dataclass(frozen=True, slots=True)
class SmallAnswer:
    """A whole small response."""

    status: int
    body: bytes


class UpstreamClient:
    """HTTP to one engine, over a pool of connections. Make it inside the event loop."""

    def __init__(
        self,
        address: UpstreamAddress,
        key: SecretStr | None,
        connect_timeout_s: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address = address
        if address.socket_path is not None:
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(
                address.socket_path, limit=0, keepalive_timeout=IDLE_CONNECTION_S
            )
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S, ssl=tls or True)
        headers = {"accept-encoding": "identity", "user-agent": "deepseek-gateway"}
        if key is not None:
            headers["authorization"] = f"Bearer {key.get_secret_value()}"
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, connect=connect_timeout_s),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BUFFER_BYTES,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Send a JSON body and wait for the head of the answer.

        Raises:
            UpstreamError: there was none.
        """
        sent = {"content-type": "application/json", **headers}
        with _translated(self.address):
            try:
                response = await self._session.post(url, data=body, headers=sent, allow_redirects=False)
            except aiohttp.ServerDisconnectedError:
                # Most likely an idle connection that the engine closed as we took it: a fresh one tells.
                response = await self._session.post(url, data=body, headers=sent, allow_redirects=False)
        return Answer(response)

    async def get(self, url: str, timeout_s: float) -> SmallAnswer:
        """A small answer, whole.

        Raises:
            UpstreamError: there was none in time.
        """
        return await self._small("GET", url, timeout_s)

    async def post_empty(self, url: str, timeout_s: float) -> SmallAnswer:
        """Post without a body.

        Raises:
            UpstreamError: there was no answer in time.
        """
        return await self._small("POST", url, timeout_s)

    @property
    def is_closed(self) -> bool:
        """Whether its connections are."""
        return self._session.closed

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def _small(self, method: str, url: str, timeout_s: float) -> SmallAnswer:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        with _translated(self.address):
            async with self._session.request(method, url, timeout=timeout, allow_redirects=False) as response:
                body = b"".join([part async for part in _limited(response, 2**20)])
                return SmallAnswer(response.status, body)


async def _limited(response: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            raise UpstreamError(f"an answer is larger than {limit} bytes")
        yield part


@contextlib.contextmanager
def _translated(address: UpstreamAddress) -> Generator[None]:
    try:
        yield
    except _FAULTS as error:
        message = f"the engine at {address.url} cannot be reached: {_describe(error)}"
        raise UnreachableError(message, is_unavailable=True) from error


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def is_idle(data: bytes) -> bool:
    """Whether these are whole comments and empty lines only, as servers send while they queue."""
    if data[:1] not in {b":", b"\n"} or not data.endswith(b"\n"):
        return False
    return all(not line.strip() or line.startswith(b":") for line in data.split(b"\n"))
