"""The HTTP client to the engines, against servers that say exactly what they are told to, byte by byte."""

import asyncio
import contextlib
import inspect
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.errors import UnreachableError, UpstreamCutError
from deepseek_gateway.testing.caller import until
from deepseek_gateway.upstream.address import UpstreamAddress
from deepseek_gateway.upstream.client import UpstreamClient
from deepseek_gateway.upstream.connection import (
    MAX_HEAD_BYTES,
    READ_BUFFER_BYTES,
    Answer,
    EngineConnection,
    whole_chunk,
)

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\n"
WHOLE = HEAD + b"content-length: 2\r\n\r\nok"


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loops that the gateway runs on: uvloop in its processes, asyncio in a user's own."""

    def run(runner: Callable[[Coroutine[Any, Any, None]], None], **given: Any) -> None:
        runner(test(**given))

    given = inspect.signature(test).parameters.values()
    runner = inspect.Parameter("runner", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([runner, *given])  # what pytest looks at
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])(run)


class Server:
    """Runs a script for each connection, and counts them."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.requests: list[bytes] = []
        self.running: set[asyncio.Task[Any]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.running.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._script(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self.running.discard(task)

    async def request(self, reader: asyncio.StreamReader) -> None:
        """Read one request with its body."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))


@contextlib.asynccontextmanager
async def talking(
    script: Callable[["Server"], Script], timeout_s: float = 5.0
) -> AsyncIterator[tuple[Server, UpstreamClient]]:
    """A server that runs a script, and a client to it."""
    server = Server(lambda reader, writer: script(server)(reader, writer))
    listener = await asyncio.start_server(server, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        async with UpstreamClient(UpstreamAddress.parse(url), None, timeout_s) as client:
            yield server, client
        await until(lambda: not server.running)  # the client has closed everything


def answering(*answers: bytes) -> Callable[[Server], Script]:
    """One answer for each request of a connection, then its end."""

    def script(server: Server) -> Script:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in answers:
                await server.request(reader)
                writer.write(answer)
                await writer.drain()

        return run

    return script


async def post(client: UpstreamClient, body: bytes = b"{}") -> tuple[int, bytes]:
    answer = await client.post(f"{client.address.url}/v1/x", body, {"x-request-id": "up-1"})
    return answer.status, await answer.read_all(2**20)


@on_both_loops
async def test_connections_are_used_again_and_the_request_is_whole() -> None:
    async with talking(answering(WHOLE, WHOLE, WHOLE)) as (server, client):
        for _ in range(3):
            assert await post(client, b'{"a":1}') == (200, b"ok")
        assert server.connections == 1
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "POST /v1/x HTTP/1.1"
        assert {"content-length: 7", "content-type: application/json", "x-request-id: up-1"} <= set(lines)
        assert body == b'{"a":1}'


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\ntrailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nx: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + WHOLE,
        HEAD + b"\r\nok",  # ends with its connection
        b"HTTP/1.0 200 OK\r\n\r\nok",
    ],
)
@on_both_loops
async def test_answers_of_every_framing_in_single_bytes(answer: bytes) -> None:
    def script(server: Server) -> Script:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.request(reader)
            for at in range(len(answer)):
                writer.write(answer[at : at + 1])
                await writer.drain()
                await asyncio.sleep(0)

        return run

    async with talking(script) as (_, client):
        assert await post(client) == (200, b"ok")


@pytest.mark.parametrize("answer", [WHOLE, HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"])
@on_both_loops
async def test_a_cut_at_any_byte_is_told_and_what_came_before_is_given(answer: bytes) -> None:
    for cut in range(len(answer)):
        async with talking(answering(answer[:cut])) as (_, client):
            if b"\r\n\r\n" not in answer[:cut]:
                with pytest.raises(UnreachableError, match="connection was closed"):
                    await post(client)
                continue
            reply = await client.post(f"{client.address.url}/v1/x", b"{}", {})
            came = b""
            with pytest.raises(UpstreamCutError, match="broke off"):  # noqa: PT012  what came before counts
                while True:
                    came += await reply.read()
            body = answer[:cut].partition(b"\r\n\r\n")[2].removeprefix(b"2\r\n" if b"chunked" in answer else b"")
            assert came == body[:2].rstrip(b"2\r\n")


@on_both_loops
async def test_a_connection_that_the_engine_closed_as_it_was_taken_is_replaced_once() -> None:
    async with talking(answering(WHOLE)) as (server, client):  # says keep-alive, and closes after each answer
        for _ in range(5):
            assert await post(client) == (200, b"ok")
        assert server.connections == len(server.requests) == 5


@on_both_loops
async def test_a_fresh_connection_that_dies_is_not_tried_again() -> None:
    async with talking(answering(b"")) as (server, client):
        with pytest.raises(UnreachableError, match="BrokenError: the connection was closed"):
            await post(client)
        assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"hello there\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", "no HTTP answer"),
        (HEAD + b"x: " + b"y" * (2 * MAX_HEAD_BYTES), "head is larger"),
        (HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nok", "no HTTP answer"),
    ],
)
@on_both_loops
async def test_what_is_no_answer_is_refused(answer: bytes, fault: str) -> None:
    async with talking(answering(answer)) as (_, client):
        with pytest.raises(UnreachableError, match=fault):
            await post(client)


@on_both_loops
async def test_bytes_that_nobody_asked_for_end_a_connection_and_reach_no_request() -> None:
    async with talking(answering(WHOLE + HEAD + b"content-length: 4\r\n\r\nevil", WHOLE)) as (server, client):
        assert await post(client) == (200, b"ok")
        assert await post(client) == (200, b"ok")
        assert server.connections == 2


@on_both_loops
async def test_connection_close_is_honoured() -> None:
    answer = HEAD + b"connection: close\r\ncontent-length: 2\r\n\r\nok"
    async with talking(answering(answer, answer)) as (server, client):
        assert await post(client) == await post(client) == (200, b"ok")
        assert server.connections == 2


@on_both_loops
async def test_a_slow_reader_stops_the_engine_and_gets_every_byte() -> None:
    size = 64 * READ_BUFFER_BYTES

    def script(server: Server) -> Script:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.request(reader)
            writer.write(HEAD + b"content-length: %d\r\n\r\n" % size)
            for _ in range(64):
                writer.write(b"x" * READ_BUFFER_BYTES)
                await writer.drain()

        return run

    async with talking(script) as (_, client):
        answer = await client.post(f"{client.address.url}/v1/x", b"{}", {})
        await until(lambda: answer._connection._is_paused)
        assert answer._size <= 2 * READ_BUFFER_BYTES + 256 * 1024  # what one read of the loop may bring on top
        assert len(await answer.read_all(size)) == size


@on_both_loops
async def test_a_wait_that_is_cancelled_loses_no_byte() -> None:
    go = asyncio.Event()

    def script(server: Server) -> Script:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.request(reader)
            writer.write(HEAD + b"content-length: 4\r\n\r\n")
            await go.wait()
            writer.write(b"text")
            await writer.drain()

        return run

    async with talking(script) as (server, client):
        answer = await client.post(f"{client.address.url}/v1/x", b"{}", {})
        for _ in range(3):
            reading = asyncio.create_task(answer.read())
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        go.set()
        assert await answer.read_all(10) == b"text"
        assert server.connections == 1


@on_both_loops
async def test_leaving_before_the_head_cuts_the_connection() -> None:
    gone = asyncio.Event()

    def script(server: Server) -> Script:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.request(reader)
            assert await reader.read() == b""
            gone.set()

        return run

    async with talking(script) as (server, client):
        asking = asyncio.create_task(post(client))
        await until(lambda: bool(server.requests))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(30):
            await gone.wait()


@on_both_loops
async def test_a_small_answer_that_does_not_come_in_time_says_so() -> None:
    def script(server: Server) -> Script:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        return run

    async with talking(script) as (_, client):
        with pytest.raises(UnreachableError) as raised:
            await client.get(f"{client.address.url}/ready", 0.01)
        assert isinstance(raised.value.__cause__, TimeoutError)


@on_both_loops
async def test_a_header_cannot_carry_another() -> None:
    async with talking(answering(WHOLE)) as (server, client):
        with pytest.raises(ValueError, match="line end"):
            await client.post(f"{client.address.url}/v1/x", b"{}", {"x-request-id": "a\r\nx: 1"})
        assert not server.requests


class Socket(asyncio.Transport):
    """A transport to nowhere."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Say nothing."""

    def is_closing(self) -> bool:
        """Not."""
        return False

    def abort(self) -> None:
        """Stay."""


def sent(*reads: bytes) -> Answer:
    """What becomes of an answer whose bytes come in these reads."""
    connection = EngineConnection(cast("Any", None), lambda _: None, lambda _: None)
    connection.connection_made(Socket())
    answer = connection.send(b"")
    for read in reads:
        if read:
            connection.data_received(read)
    return answer


CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
PIECES = st.lists(
    st.sampled_from(
        [b"data: x\n\n", b"\n", b"\r\n", b"\n\r\n", b"5\r\n", b"0\r\n\r\n", b"\n5\r\nhello\r\n", b"a" * 300]
    ),
    min_size=1,
    max_size=6,
)
HEADS = st.sampled_from([b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;ext=1\r\n"])


@given(PIECES, HEADS, st.booleans(), st.lists(st.integers(0, 2000), max_size=8))
def test_a_chunked_body_is_the_same_however_it_is_cut(
    pieces: list[bytes], head: bytes, is_cut_at_chunks: bool, cuts: list[int]
) -> None:
    chunks = [CHUNKED, *(head % len(piece) + piece + b"\r\n" for piece in pieces)]
    whole = b"".join([*chunks, b"0\r\n\r\n"])
    at = {0, len(whole), *(cut % len(whole) for cut in cuts)}
    if is_cut_at_chunks:
        at |= set(itertools.accumulate(len(chunk) for chunk in chunks))
    answer = sent(*(whole[a:b] for a, b in itertools.pairwise(sorted(at))))
    assert answer.is_whole
    assert answer._joined() == b"".join(pieces)


@given(PIECES)
def test_a_chunk_in_a_read_of_its_own_is_handed_on_as_it_is(pieces: list[bytes]) -> None:
    for piece in pieces:
        assert whole_chunk(b"%x\r\n%b\r\n" % (len(piece), piece)) == piece


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"\r\n",
            b"0\r\n\r\n",
            b"1\r\n\r\n",
            b"+1\r\nx\r\n",
            b"1\r\nxy\r\n",
            b"2\r\nx\r\n",
            b"1\r\nx\r\n1\r\nx\r\n",
        ),
        *(b"1\r\nx", b"1\r\nx\r", b"01\r\nx\r\n", b"1;a\r\nx\r\n", b"A\r\n0123456789\r\n", b"-1\r\nx\r\n", b"1\nx\r\n"),
    ],
)
def test_what_is_not_plainly_one_chunk_is_left_to_the_parser(data: bytes) -> None:
    assert whole_chunk(data) is None


@pytest.mark.parametrize("value", [b"inf", b"nan", b"-1", b"1e999", b"Fri, 27 Nov 2026 10:00:00 GMT", b""])
async def test_a_retry_after_that_is_no_time_is_none(value: bytes) -> None:
    refusal = b"HTTP/1.1 503 Busy\r\nretry-after: " + value + b"\r\ncontent-length: 2\r\n\r\n{}"
    async with talking(answering(refusal)) as (_, client):
        answer = await client.post(f"{client.address.url}/v1/x", b"{}", {})
        assert answer.retry_after_s is None
        await answer.read_all(100)


def test_a_chunk_that_is_larger_than_it_says_is_a_fault_at_its_place_too() -> None:
    answer = sent(CHUNKED + b"2\r\n\n\n\r\n", b"2\r\nok\r\n", b"1\r\nno\r\n")
    assert answer.fault is not None
    assert answer._joined().startswith(b"\n\nok")
