"""The engine of the benchmark: a bare asyncio.Protocol with fixed answers, so that the gateway is what is measured.

`python -m deepseek_gateway.bench.mock_engine` prints its URL. The model's name chooses the course of a stream:

    bench        64 chunks, as fast as they can be sent
    bench-paced  200 chunks, one every 10 ms
    bench-held   one chunk a second until the caller leaves or aborts

It counts tokens in every chunk when asked (`continuous_usage_stats`), as deepseek-server does, and obeys aborts.
"""

import argparse
import asyncio
import signal
import socket
import sys
from dataclasses import dataclass
from typing import cast

import uvloop

from deepseek_client.sse import DONE

CHUNKS = {b"bench": (64, 0.0), b"bench-paced": (200, 0.01), b"bench-held": (100_000, 1.0)}
"""Chunks of a stream, and seconds between two of them."""

PROMPT_TOKENS = 96
ANSWER_TOKENS = 64
_HEAD = b'{"id":"chatcmpl-1","object":"chat.completion%s","created":1700000000,"model":"bench","choices":[{"index":0,'
_USAGE = (
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_cache_hit_tokens":0,'
    b'"prompt_cache_miss_tokens":%d}'
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
MODELS = b'{"object":"list","data":[' + b",".join(b'{"id":"%s","object":"model"}' % name for name in CHUNKS) + b"]}"


def usage(completion_tokens: int) -> bytes:
    """The `usage` field after so many tokens."""
    return _USAGE % (PROMPT_TOKENS, completion_tokens, PROMPT_TOKENS + completion_tokens, PROMPT_TOKENS)


ANSWER = (
    _HEAD % b""
    + b'"finish_reason":"stop","message":{"role":"assistant","content":"%s"}}],' % (b"Hello, a short answer. " * 10)
    + usage(ANSWER_TOKENS)
    + b"}"
)


def event(number: int, finish: bytes, *, with_usage: bool) -> bytes:
    """One chunk as an event; `finish` is `null` or a quoted reason."""
    tail = b"," + usage(number) if with_usage else b""
    return b'data: %s"delta":{"content":" token"},"finish_reason":%s}]%s}\n\n' % (_HEAD % b".chunk", finish, tail)


def framed(data: bytes) -> bytes:
    """One piece of chunked transfer."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    path: bytes
    request_id: bytes
    body: bytes


class Stream:
    """One running stream."""

    def __init__(self, transport: asyncio.Transport, model: bytes, *, continuous: bool, final: bool) -> None:
        self._transport = transport
        self._count, self._pause_s = CHUNKS.get(model, CHUNKS[b"bench"])
        self._continuous = continuous
        self._final = final
        self._sent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = asyncio.get_running_loop().time()
        self.is_over = False

    def begin(self) -> None:
        """Send the head and the first chunk, or all of them when there is no pause."""
        self._transport.write(STREAM_HEAD)
        if self._pause_s:
            self._tick()
            return
        while self._sent < self._count:
            self._send_next()
        self.end(b'"stop"')

    def end(self, finish: bytes) -> None:
        """Send the last events; a second call does nothing."""
        if self.is_over:
            return
        self.drop()
        last = event(self._sent, finish, with_usage=self._continuous)
        if self._final:
            last += b'data: {"choices":[],%s}\n\n' % usage(self._sent)
        self._transport.write(framed(last) + framed(DONE) + b"0\r\n\r\n")

    def drop(self) -> None:
        """Send no more."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _send_next(self) -> None:
        self._sent += 1
        self._transport.write(framed(event(self._sent, b"null", with_usage=self._continuous)))

    def _tick(self) -> None:
        self._send_next()
        if self._sent >= self._count:
            self.end(b'"stop"')
            return
        self._due_s += self._pause_s  # a late chunk does not make all that follow late
        self._timer = asyncio.get_running_loop().call_at(self._due_s, self._tick)


class EngineProtocol(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self, streams: dict[bytes, Stream]) -> None:
        self._streams = streams
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._running: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's
        """The caller left: its stream ends."""
        if self._running is not None and (stream := self._streams.pop(self._running, None)) is not None:
            stream.drop()

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._buffer += data
        while (ask := self._take()) is not None:
            self._answer(ask)

    def _take(self) -> Ask | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = self._buffer[:end]
        length = int(_field(head, b"content-length") or 0)
        if len(self._buffer) < end + 4 + length:
            return None
        body = self._buffer[end + 4 : end + 4 + length]
        self._buffer = self._buffer[end + 4 + length :]
        return Ask(head.split(b" ", 2)[1], _field(head, b"x-request-id") or b"", body)

    def _answer(self, ask: Ask) -> None:
        assert self._transport is not None
        if ask.path.endswith(b"/abort"):
            stream = self._streams.pop(ask.path.split(b"/")[-2], None)
            if stream is not None:
                stream.end(b'"abort"')
            self._send_json(b'{"aborted":%s}' % (b"false" if stream is None else b"true"))
        elif ask.path.endswith(b"/models"):
            self._send_json(MODELS)
        elif not ask.path.endswith(b"/completions"):
            self._send_json(b"{}")
        elif b'"stream":true' in ask.body.replace(b'"stream": true', b'"stream":true'):
            self._begin_stream(self._transport, ask)
        else:
            self._send_json(ANSWER)

    def _begin_stream(self, transport: asyncio.Transport, ask: Ask) -> None:
        compact = ask.body.replace(b'": ', b'":')
        model = compact.partition(b'"model":"')[2].partition(b'"')[0]
        continuous, final = b'"continuous_usage_stats":true' in compact, b'"include_usage":true' in compact
        stream = Stream(transport, model, continuous=continuous, final=final)
        self._running = ask.request_id or b"anonymous-%d" % id(self)
        self._streams[self._running] = stream
        stream.begin()
        if stream.is_over:
            self._streams.pop(self._running, None)

    def _send_json(self, body: bytes) -> None:
        assert self._transport is not None
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


def _field(head: bytes, name: bytes) -> bytes | None:
    at = head.lower().find(b"\r\n" + name + b":")
    if at < 0:
        return None
    start = at + len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else len(head)].strip()


async def serve(port: int) -> None:
    """Serve until SIGTERM."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    streams: dict[bytes, Stream] = {}
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = await loop.create_server(lambda: EngineProtocol(streams), sock=listener, backlog=4096)
    sys.stdout.write(f"listening on http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    await stop.wait()
    server.close()


def main() -> int:
    """Run as a process."""
    parser = argparse.ArgumentParser(prog="python -m deepseek_gateway.bench.mock_engine", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    uvloop.run(serve(parser.parse_args().port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
