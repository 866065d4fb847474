"""Which server, event loop, HTTP client and JSON library a relay should stand on.

    python packages/gateway/benchmarks/candidates.py [--rounds 3] [--seconds 2]

Each candidate is the least relay that is one: it checks a bearer key, parses the body and passes bytes on. All run at
once and are measured in turn, so that what else the machine does hits all alike. granian and msgspec take part where
they are installed.
"""

import argparse
import asyncio
import importlib.util
import json
import socket
import statistics
import sys
import timeit
from collections.abc import AsyncIterator, Callable
from typing import Any

from deepseek_gateway.bench.load import Endpoint, closed_loop, together
from deepseek_gateway.bench.mock_engine import event
from deepseek_gateway.bench.process import Child
from deepseek_gateway.bench.targets import free_port, start_engine

KEY = "sk-candidate"
CANDIDATES = {
    "uvicorn, uvloop, aiohttp": ("uvicorn", "uvloop", "aiohttp"),
    "uvicorn, asyncio, aiohttp": ("uvicorn", "asyncio", "aiohttp"),
    "uvicorn, uvloop, bare protocol": ("uvicorn", "uvloop", "protocol"),
    "granian, uvloop, aiohttp": ("granian", "uvloop", "aiohttp"),
    "granian, uvloop, bare protocol": ("granian", "uvloop", "protocol"),
}


class AiohttpClient:
    """The gateway's client, as it sets it up."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: Any = None

    async def post(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The answer's bytes as they come; the first item is its content type."""
        import aiohttp

        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        headers = {"content-type": "application/json"}
        async with self._session.post(f"{self._url}{path}", data=body, headers=headers) as answer:
            yield answer.headers["content-type"].encode()
            while data := await answer.content.readany():
                yield data


class ProtocolClient:
    """The least there is: httptools under an asyncio.Protocol, one idle list."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The answer's bytes as they come; the first item is its content type."""
        if self._idle:
            connection = self._idle.pop()
        else:
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, *self._address)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: e\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection.begin(head.encode() + body)
        yield await connection.head()
        while data := await connection.read():
            yield data
        self._idle.append(connection)


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: Any = None
        self._parser: Any = None
        self._parts: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._kind = b""
        self._has_head = self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def begin(self, raw: bytes) -> None:
        import httptools

        self._parser = httptools.HttpResponseParser(self)
        self._parts, self._has_head, self._is_over = [], False, False
        self._transport.write(raw)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._kind = value

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._is_over = True

    async def head(self) -> bytes:
        while not self._has_head:
            await self._wait()
        return self._kind

    async def read(self) -> bytes:
        while not self._parts and not self._is_over:
            await self._wait()
        parts, self._parts = self._parts, []
        return b"".join(parts)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


def make_app(client: AiohttpClient | ProtocolClient) -> Callable[..., Any]:
    """The relay."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError("HTTP only")
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        key = dict(scope["headers"]).get(b"authorization", b"")
        status = 200 if key == b"Bearer " + KEY.encode() and isinstance(json.loads(body), dict) else 401
        answer = client.post(scope["path"], body)
        kind = await anext(answer)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        async for data in answer:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def serve(name: str, engine: str, port: int) -> None:
    """Run one candidate until killed."""
    server, loop, kind = CANDIDATES[name]  # granian runs on uvloop only, here
    client = AiohttpClient(engine) if kind == "aiohttp" else ProtocolClient(engine)
    if server == "uvicorn":
        import uvicorn

        uvicorn.run(
            make_app(client), port=port, loop=loop, http="httptools", ws="none", lifespan="off", log_level="warning"
        )
        return
    import uvloop

    granian: Any = importlib.import_module("granian.server.embed")
    app = make_app(client)
    uvloop.run(granian.Server(app, port=port, interface="asginl", log_enabled=False).serve())


def wait_for(port: int, child: Child) -> None:
    """Until something listens."""
    while True:
        child.check()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            continue
        return


async def measure(endpoint: Endpoint, child: Child, seconds: float) -> dict[str, float]:
    """CPU microseconds of each request at 1, 16 and 64 callers, and of each paced chunk."""
    found: dict[str, float] = {}
    for callers in (1, 16, 64):
        before = child.cpu_s()
        tally = await closed_loop(endpoint, "bench", callers, seconds, stream=False)
        found[f"us/request, {callers}"] = (child.cpu_s() - before) * 1e6 / len(tally.answers)
        found[f"requests/s, {callers}"] = len(tally.answers) / tally.seconds
    before = child.cpu_s()
    tally = await together(endpoint, "bench-paced", 50)
    found["us/chunk, 50 paced"] = (child.cpu_s() - before) * 1e6 / tally.chunks
    return found


def time_json() -> dict[str, float]:
    """Microseconds to read one chunk with usage."""
    chunk = event(7, b"null", with_usage=True)[6:-2]
    readers: dict[str, Callable[[bytes], Any]] = {"json": json.loads}
    for module, name in (("orjson", "loads"), ("msgspec.json", "decode")):
        if importlib.util.find_spec(module.partition(".")[0]):
            readers[module] = getattr(importlib.import_module(module), name)
    return {name: min(timeit.repeat(lambda r=read: r(chunk), number=20_000)) * 50 for name, read in readers.items()}


def main() -> int:
    """Measure, or serve one candidate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--serve", nargs=3, metavar=("NAME", "ENGINE", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], options.serve[1], int(options.serve[2]))
        return 0
    names = [name for name, (server, *_) in CANDIDATES.items() if importlib.util.find_spec(server)]
    engine, url = start_engine()
    children: dict[str, tuple[Child, Endpoint]] = {}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    try:
        for name in names:
            port = free_port()
            child = Child(name.replace(", ", "-"), (sys.executable, __file__, "--serve", name, url, str(port)))
            wait_for(port, child)
            children[name] = child, Endpoint(f"http://127.0.0.1:{port}", (KEY,))
            asyncio.run(closed_loop(children[name][1], "bench", 4, 0.3, stream=False))
        for _ in range(options.rounds):
            for name, (child, endpoint) in children.items():
                for figure, value in asyncio.run(measure(endpoint, child, options.seconds)).items():
                    found[name].setdefault(figure, []).append(value)
    finally:
        for child, _ in children.values():
            child.stop()
        engine.stop()
    for name, figures in found.items():
        print(f"{name:34}", "  ".join(f"{title} {statistics.median(values):.0f}" for title, values in figures.items()))
    print(json.dumps({"candidates": found, "json_us": time_json()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
