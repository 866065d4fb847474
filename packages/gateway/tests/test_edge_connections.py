"""What one connection may bring, and in which order it is answered, over real sockets."""

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from deepseek_gateway.edge import protocol
from deepseek_gateway.edge.head import RefusalError, check_head, read_target, without_upgrade
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.stack import Stack, running_stack

HEALTH = b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
LAST = b"connection: close\r\n"


def post(stack: Stack, body: bytes, headers: bytes = b"", version: bytes = b"1.1", *, key: bool = True) -> bytes:
    """A request for `/v1/generate`, as bytes; its length is up to `headers` where these are chunked."""
    length = b"" if CHUNKED in headers else b"content-length: %d\r\n" % len(body)
    who = b"authorization: Bearer " + stack.caller.key.encode() + b"\r\n" if key else b""
    return b"POST /v1/generate HTTP/" + version + b"\r\nhost: h\r\n" + who + length + headers + b"\r\n" + body


def asked(**body: object) -> bytes:
    return json.dumps({"prompt": "a", "max_tokens": 2, **body}).encode()


class Connection:
    """One connection to a gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, stack: Stack) -> "Connection":
        host, _, port = stack.running.url.removeprefix("http://").partition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def send(self, *parts: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                self.writer.write(part)
                await self.writer.drain()

    async def rest(self) -> bytes:
        """All that comes until the other side closes."""
        async with asyncio.timeout(30):
            return await self.reader.read()

    async def leave(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def exchange(stack: Stack, *parts: bytes) -> bytes:
    """Send these; what comes until the gateway closes."""
    connection = await Connection.to(stack)
    await connection.send(*parts)
    answer = await connection.rest()
    await connection.leave()
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


async def test_a_caller_that_leaves_behind_a_second_request_ends_the_first_at_the_engine(stack: Stack) -> None:
    stack.engine.allow(2)
    connection = await Connection.to(stack)
    stream = asked(stream=True, fake={"tokens": 100, "gated": True})
    await connection.send(post(stack, stream) + HEALTH, HEALTH * 3000)  # more than is kept: nobody reads on for these
    await until(lambda: any(job.num_sent == 2 for job in stack.engine.running.values()))
    await connection.leave()
    row = await stack.row()
    assert (row.end_reason, row.completion_tokens, row.accuracy) == ("client_disconnect", 2, "exact")
    assert stack.engine.finished[0].finish == "abort"


async def test_requests_of_one_read_are_answered_in_order_up_to_a_number(stack: Stack) -> None:
    answer = await exchange(stack, HEALTH * (protocol.MAX_BEHIND + 40))
    first = statuses(answer)[: protocol.MAX_BEHIND]
    assert first == [200] * protocol.MAX_BEHIND
    assert set(statuses(answer)) <= {200, 503}
    assert b"before an answer" in answer or len(statuses(answer)) == protocol.MAX_BEHIND + 40


async def test_many_requests_are_answered_while_a_head_among_them_comes_in_two_reads(stack: Stack) -> None:
    big = post(stack, b" " * 40_000 + asked())  # the head behind it is counted for itself
    answer = await exchange(
        stack, big + HEALTH[:20], HEALTH[20:] + HEALTH.replace(b"\r\n\r\n", b"\r\n" + LAST + b"\r\n")
    )
    assert statuses(answer) == [200, 200, 200]


async def test_what_is_no_request_is_refused_behind_the_answers_that_are_due(stack: Stack) -> None:
    for rest in (b"BAD\r\n\r\n", HEALTH.replace(b"host", b"host: x\r\nhost"), b"GET /" + b"a" * 70_000):
        answer = await exchange(stack, post(stack, asked()) + rest)
        assert statuses(answer)[0] == 200
        assert statuses(answer)[1:] in ([400], [431])
        assert b'"finish_reason":"length"' in answer


async def test_nothing_behind_a_last_request_is_answered(stack: Stack) -> None:
    for rest in (HEALTH, b"BAD\r\n\r\n", b"\r\n", b"x" * 100_000):
        assert statuses(await exchange(stack, post(stack, asked(), LAST) + rest)) == [200]


BROKEN_CHUNKS = (
    b"2\n{}\r\n0\r\n\r\n",
    b"2\r\n{}\n0\r\n\r\n",
    b"2 \r\n{}\r\n0\r\n\r\n",
    b"0x2\r\n{}\r\n0\r\n\r\n",
    b"-2\r\n{}\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\n{}",
    b"2;\n{}\r\n0\r\n\r\n",
    b"2;a\rb\r\n{}\r\n0\r\n\r\n",
    b"2\r\n{}\r\n0\r\nx : y\r\n\r\n",
    b"2\r\n{}\r\n0\r\nx: " + b"y" * 200_000,
    b"2;x=" + b"y" * 200_000,
)


async def test_a_body_that_cannot_be_read_is_refused_once_and_nothing_behind_it_is_served(stack: Stack) -> None:
    for chunks in BROKEN_CHUNKS:
        answer = await exchange(stack, post(stack, b"", CHUNKED), chunks + HEALTH)
        assert statuses(answer) in ([400], [431])
        assert b"the body cannot be read" in answer
        refused = await exchange(stack, post(stack, b"", CHUNKED, key=False), chunks + HEALTH)
        assert statuses(refused) == [401]  # it was answered before: there is no second answer to it


async def test_trailers_are_no_headers(state_dir: Path) -> None:
    chunks = b"%x\r\n%b\r\n0\r\n" % (len(asked()), asked())
    async with running_stack(state_dir, trusted_proxies="127.0.0.1") as stack:
        caller = stack.with_key(cidrs=["10.0.0.1"])
        head = b"POST /v1/generate HTTP/1.1\r\nhost: h\r\nx-forwarded-for: 192.0.2.1\r\n" + CHUNKED + LAST
        who = b"authorization: Bearer " + caller.key.encode() + b"\r\n"
        claimed = await exchange(stack, head + who + b"\r\n" + chunks + b"x-forwarded-for: 10.0.0.1\r\n\r\n")
        keyed = await exchange(stack, head + b"\r\n" + chunks + who + b"\r\n")
    assert (statuses(claimed), statuses(keyed)) == ([403], [401])


async def test_a_body_too_large_or_unwanted_leaves_the_caller_the_time_to_read_the_answer(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", 60.0)
    async with running_stack(state_dir, max_body_bytes=2000) as stack:
        for key, status in ((True, 413), (False, 401)):
            connection = await Connection.to(stack)
            body = b"a" * 10_000_000  # more than the sockets hold: all of it is sent before the answer is read
            connection.writer.write(post(stack, body, LAST, key=key))
            await connection.writer.drain()
            assert statuses(await connection.rest()) == [status]
            await connection.leave()


async def test_a_head_too_large_leaves_the_caller_the_time_to_read_the_answer(stack: Stack) -> None:
    huge = HEALTH.replace(b"\r\n\r\n", b"\r\nx: " + b"a" * 3_000_000 + b"\r\n\r\n")
    assert statuses(await exchange(stack, huge)) == [431]


async def test_who_waits_to_go_on_is_told_to_or_hangs_up_without_a_body(stack: Stack) -> None:
    waits = b"expect: 100-continue\r\n"
    refused = await exchange(stack, post(stack, asked(), waits, key=False).removesuffix(asked()))
    assert statuses(refused) == [401]
    assert b"connection: close" in refused
    connection = await Connection.to(stack)
    head = post(stack, asked(), waits + LAST).removesuffix(asked())
    await connection.send(head)
    told = await connection.reader.readuntil(b"\r\n\r\n")
    await connection.send(asked())
    assert statuses(told + await connection.rest()) == [100, 200]
    await connection.leave()
    old = await exchange(stack, post(stack, asked(), waits, b"1.0").removesuffix(asked()), asked())
    assert statuses(old) == [200]  # HTTP/1.0 has no 100


async def test_a_stream_for_http_1_0_has_no_chunks_and_ends_with_the_connection(stack: Stack) -> None:
    answer = await exchange(stack, post(stack, asked(stream=True), b"connection: keep-alive\r\n", b"1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_request_that_would_change_protocols_is_served_as_it_is(stack: Stack) -> None:
    """Java's client asks for HTTP/2 with each first request."""
    wish = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n"
    socket = HEALTH.replace(b"\r\n\r\n", b"\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
    sized = post(stack, asked(), wish)
    chunked = post(stack, b"%x\r\n%b\r\n0\r\n\r\n" % (len(asked()), asked()), wish + CHUNKED)
    for parts in (
        [sized + socket + chunked + post(stack, asked(), LAST)],
        [sized[:150], sized[150:], post(stack, b"", LAST)],
    ):
        answer = await exchange(stack, *parts)
        assert statuses(answer) == ([200] * 4 if len(parts) == 1 else [200, 400])


@pytest.mark.parametrize(
    ("url", "path", "query", "host"),
    [
        (b"/a%20b?c=d?e", "/a b", b"c=d?e", None),
        (b"*", "*", b"", None),
        (b"//x/y", "//x/y", b"", None),
        (b"http://h", "/", b"", b"h"),
        (b"HTTPS://h:1?c", "/", b"c", b"h:1"),
        (b"http://[::1]:80/a?c", "/a", b"c", b"[::1]:80"),
    ],
)
def test_a_target_is_read_in_every_form(url: bytes, path: str, query: bytes, host: bytes | None) -> None:
    target = read_target(url)
    assert (target.path, target.query, target.host) == (path, query, host)


@pytest.mark.parametrize(
    "url", [b"/a#b", b"ftp://h/", b"http://u@h/", b"http://u:p@h/", b"http://", b"h:80", b"a/b", b""]
)
def test_what_is_no_target_is_refused(url: bytes) -> None:
    with pytest.raises(RefusalError) as caught:
        read_target(url)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("version", "headers", "status"),
    [
        ("0.9", [(b"host", b"h")], 505),
        ("2.0", [(b"host", b"h")], 505),
        ("1.1", [], 400),
        ("1.1", [(b"host", b"h"), (b"host", b"h")], 400),
        ("1.0", [(b"host", b"h"), (b"host", b"h")], 400),
        ("1.1", [(b"host", b"a b")], 400),
        ("1.1", [(b"host", b"u@h")], 400),
        ("1.1", [(b"host", b"h/x")], 400),
        ("1.1", [(b"host", b"h:x")], 400),
        ("1.0", [(b"transfer-encoding", b"chunked")], 400),
        ("1.1", [(b"host", b"h"), (b"transfer-encoding", b"gzip, chunked")], 400),
        ("1.1", [(b"host", b"h"), (b"content-length", b"1"), (b"transfer-encoding", b"chunked")], 400),
    ],
)
def test_heads_are_refused_for_what_could_be_read_in_two_ways(
    version: str, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    with pytest.raises(RefusalError) as caught:
        check_head(b"GET", version, headers)
    assert caught.value.status == status


def test_sound_heads_pass() -> None:
    for host in (b"", b"h", b"h:", b"h:80", b"[::1]:80", b"a_b.example", b"10.0.0.1"):
        assert not check_head(b"GET", "1.1", [(b"host", host)])
    assert check_head(b"POST", "1.1", [(b"host", b"h"), (b"expect", b"100-Continue")])
    assert not check_head(b"POST", "1.0", [(b"expect", b"100-continue")])
    head = without_upgrade(b"GET", b"/x", [(b"host", b"h"), (b"upgrade", b"h2c"), (b"connection", b"Upgrade")])
    assert head == b"GET /x HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\n\r\n"
