"""A server that sends the very bytes it is told to: what servers of other makers do, and what no library would."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: close\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


@dataclass(slots=True)
class RawServer:
    """Answers every POST with `reply`, byte for byte, and ends the connection; `url` is its /v1."""

    url: str = ""
    reply: bytes = b""
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def streams(self, *events: bytes) -> None:
        """Answer with an event stream."""
        self.reply = HEAD % b"text/event-stream" + b"".join(events)

    def says(self, body: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> None:
        """Answer in one piece."""
        self.reply = HEAD.replace(b"200 OK", status) % kind + body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not head.startswith(b"POST"):
                    writer.write(NOT_FOUND)
                    continue
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                self.bodies.append(json.loads(await reader.readexactly(int(lengths[0].partition(b":")[2]))))
                writer.write(self.reply)
                await writer.drain()
                break
        writer.close()


@contextlib.asynccontextmanager
async def raw_server() -> AsyncGenerator[RawServer]:
    """One that listens, for as long as the block runs."""
    server = RawServer()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        yield server


def chunk(
    delta: dict[str, Any] | None, finish: str | None = None, *, separators: tuple[str, str] = (",", ":"), **more: Any
) -> bytes:
    """An event of a chat; without a delta one that has no choices."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
    return b"data: " + json.dumps({**head, **more}, separators=separators).encode() + b"\n\n"


def chunks_of(deltas: Sequence[dict[str, Any]], finish: str = "stop", **more: Any) -> list[bytes]:
    """The events of a chat; what is in `more` comes with the last."""
    return [*(chunk(delta) for delta in deltas), chunk({}, finish, **more)]
