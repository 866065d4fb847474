"""Any bytes, in any pieces: a connection answers each request once, in order, ends, and keeps no more than it may."""

import asyncio
import itertools
import re
from typing import Any

import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from deepseek_gateway.edge.body import read_body
from deepseek_gateway.edge.head import HeadLimits
from deepseek_gateway.edge.protocol import MAX_BEHIND, GuardedProtocol, guarded
from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.edge.watch import CallerGoneError
from deepseek_gateway.errors import ApiError

LIMITS = HeadLimits(max_bytes=2048, max_headers=20)

WORDS = (
    b"GET /one HTTP/1.1\r\nhost: h\r\n\r\n",
    b"POST /read HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello",
    b"POST /read HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nhost: t\r\n\r\n",
    b"POST /one HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nab",
    b"POST /read HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 3\r\n\r\nabc",
    b"HEAD /one HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
    b"GET http://x/one HTTP/1.0\r\n\r\n",
    b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"connection: close\r\n",
    b"x: y\r\n",
    b"x: " + b"y" * 3000,
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"0\r\n\r\n",
    b"ffffffff\r\n",
    b"\xff\xfe",
)


class Transport:
    """A caller's end that notes what it gets; like a real one it is closed a moment later."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        self.sent = bytearray()
        self.is_over = self.is_half = False
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 2)}.get(name, default)

    def write(self, data: bytes) -> None:
        assert not self.is_over
        assert not self.is_half, "something is written behind the end"
        self.sent += data

    def close(self) -> None:
        if not self.is_over:
            self.is_over = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.is_over

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_half = True

    def pause_reading(self) -> None:
        """What comes all the same must do no harm."""

    def resume_reading(self) -> None:
        """See above."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the path, and with the body where that is asked for."""
    body = b""
    if scope["path"] == "/read":
        try:
            body = await read_body(scope, receive, 1000, 60.0)
        except CallerGoneError:
            return
        except ApiError as error:
            await send_body(send, error.status, b"", headers=error.headers)
            return
    await send_body(send, 200, scope["path"].encode() + body)


async def talk(parts: list[bytes]) -> bytes:
    """What a caller that sends these gets, until it leaves; dates are not there."""
    config = uvicorn.Config(app, http=guarded(LIMITS), lifespan="off", log_config=None, date_header=False)
    config.load()
    state = ServerState()
    protocol = guarded(LIMITS)(config, state, {})
    transport = Transport(protocol)
    protocol.connection_made(transport)
    for part in parts:
        if transport.is_over:
            break
        protocol.data_received(part)
        assert len(protocol.pipeline) <= MAX_BEHIND
        for _ in range(5):
            await asyncio.sleep(0)
    for _ in range(20 * MAX_BEHIND):  # whatever was begun has its turns
        await asyncio.sleep(0)
    transport.close()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not state.tasks, "a request runs on without its caller"
    assert not state.connections
    return bytes(transport.sent)


@st.composite
def pieces(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Bytes that are almost requests, whole and in pieces."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8))))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.sampled_from((*WORDS, b"")))
    cuts = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=6))})
    return bytes(data), [bytes(data[start:end]) for start, end in itertools.pairwise(cuts)]


@given(pieces())
@settings(max_examples=150, deadline=None)
def test_bytes_mean_the_same_in_whatever_pieces_they_come(given_bytes: tuple[bytes, list[bytes]]) -> None:
    whole, parts = given_bytes
    at_once, in_parts = asyncio.run(talk([whole])), asyncio.run(talk(parts))
    assert without_interim(in_parts) == without_interim(at_once)
    assert without_interim(at_once).count(b"HTTP/1.1 ") <= whole.count(b"\r\n\r\n") + 1


def without_interim(answer: bytes) -> bytes:
    """Whether a caller is told to go on depends on whether its body was there."""
    return re.sub(rb"HTTP/1\.1 100 Continue\r\n\r\n", b"", answer)
