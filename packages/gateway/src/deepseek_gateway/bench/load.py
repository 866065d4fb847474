"""The callers of the benchmark: raw connections that count, and do next to nothing else."""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self, cast
from urllib.parse import urlsplit

USER = "Say something short about the weather in Paris, please. " * 8
_CHUNK = b"data: {"
_END = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go, and with which keys: they take turns."""

    url: str
    keys: tuple[str, ...]

    def request(self, model: str, *, stream: bool, key: int = 0) -> bytes:
        """A chat request of about 0.6 kB, head and body."""
        messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": USER}]
        fields = {"model": model, "messages": messages, "temperature": 0.7, "stream": stream}
        body = json.dumps(fields, separators=(",", ":")).encode()
        parts = urlsplit(self.url)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {self.keys[key % len(self.keys)]}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80


class LoadError(Exception):
    """A target answered something else than 200, or broke off."""


@dataclass(slots=True)
class Answered:
    """One answer: seconds to its first chunk (of its head, if it has none) and to its end."""

    first_s: float = 0.0
    total_s: float = 0.0
    chunks: int = 0


class Connection(asyncio.Protocol):
    """One kept-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Answered] | None = None
        self._answer = Answered()
        self._began_s = 0.0
        self._head = b""
        self._tail = b""
        self._left: int | None = None
        self._is_head = True
        self.first = asyncio.Event()

    @classmethod
    async def open(cls, endpoint: Endpoint) -> Self:
        """Connect."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(cls, *endpoint.address)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The target closed."""
        self._fail(f"the connection ended: {exc}")

    async def ask(self, raw: bytes) -> Answered:
        """Send a request and wait for the whole answer.

        Raises:
            LoadError: it is not a 200.
        """
        return await self.start(raw)

    def start(self, raw: bytes) -> asyncio.Future[Answered]:
        """Send a request; the future is its answer."""
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._answer, self._head, self._tail, self._left, self._is_head = Answered(), b"", b"", None, True
        self.first.clear()
        self._began_s = time.perf_counter()
        self._transport.write(raw)
        return self._done

    def close(self) -> None:
        """Leave."""
        assert self._transport is not None
        self._done = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Count."""
        if self._is_head:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            data, head, self._is_head = self._head[end + 4 :], self._head[:end].lower(), False
            if b" 200 " not in head[:16]:
                self._fail(f"{head[:200]!r} {data[:300]!r}")
                return
            at = head.find(b"content-length:")
            self._left = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else None
            self._tail = b"\r\n"
        self._take(data)

    def _take(self, data: bytes) -> None:
        answer = self._answer
        if self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._finish()
            return
        seen = self._tail + data
        count = seen.count(_CHUNK)
        if count and not answer.chunks:
            answer.first_s = time.perf_counter() - self._began_s
            self.first.set()
        answer.chunks += count
        self._tail = seen[-6:]  # shorter than either mark: nothing is counted twice
        if seen.endswith(_END):
            self._finish()

    def _finish(self) -> None:
        self._answer.total_s = time.perf_counter() - self._began_s
        if self._done is not None and not self._done.done():
            self._done.set_result(self._answer)

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(LoadError(why))


@dataclass(slots=True)
class Tally:
    """What a load came to."""

    seconds: float = 0.0
    answers: list[Answered] = field(default_factory=list["Answered"])

    @property
    def chunks(self) -> int:
        """Of all answers."""
        return sum(answer.chunks for answer in self.answers)

    @property
    def total_ms(self) -> list[float]:
        """Latencies, sorted."""
        return sorted(answer.total_s * 1000 for answer in self.answers)

    @property
    def first_ms(self) -> list[float]:
        """Times to the first chunk, sorted."""
        return sorted(answer.first_s * 1000 for answer in self.answers)


def percentile(values: Sequence[float], percent: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(percent / 100 * len(values)))] if values else 0.0


async def closed_loop(endpoint: Endpoint, model: str, callers: int, seconds: float, *, stream: bool) -> Tally:
    """So many callers, each with its next request as soon as the last is answered."""
    tally, raws = Tally(), [endpoint.request(model, stream=stream, key=at) for at in range(len(endpoint.keys))]
    connections = await _opened(endpoint, callers)
    turn = itertools.cycle(raws)
    began_s = time.perf_counter()

    async def call(connection: Connection) -> None:
        while time.perf_counter() - began_s < seconds:
            tally.answers.append(await connection.ask(next(turn)))

    await _all(call, connections)
    tally.seconds = time.perf_counter() - began_s
    return tally


async def open_loop(endpoint: Endpoint, model: str, per_second: float, seconds: float) -> Tally:
    """Requests at a constant rate, whether or not the ones before are answered."""
    tally, raw = Tally(), endpoint.request(model, stream=False)
    idle = await _opened(endpoint, 8)
    running: set[asyncio.Task[None]] = set()

    async def call() -> None:
        connection = idle.pop() if idle else await Connection.open(endpoint)
        tally.answers.append(await connection.ask(raw))
        idle.append(connection)

    began_s = time.perf_counter()
    for number in range(int(per_second * seconds)):
        wait_s = began_s + number / per_second - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(call())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    tally.seconds = time.perf_counter() - began_s
    for connection in idle:
        connection.close()
    return tally


async def together(endpoint: Endpoint, model: str, streams: int) -> Tally:
    """So many streams that begin together, once."""
    tally, raw = Tally(), endpoint.request(model, stream=True)
    connections = await _opened(endpoint, streams)
    began_s = time.perf_counter()

    async def call(connection: Connection) -> None:
        tally.answers.append(await connection.ask(raw))

    await _all(call, connections)
    tally.seconds = time.perf_counter() - began_s
    return tally


async def _opened(endpoint: Endpoint, number: int) -> list[Connection]:
    return [await Connection.open(endpoint) for _ in range(number)]


async def _all(call: Callable[[Connection], Awaitable[None]], connections: list[Connection]) -> None:
    try:
        await asyncio.gather(*(call(connection) for connection in connections))
    finally:
        for connection in connections:
            connection.close()
