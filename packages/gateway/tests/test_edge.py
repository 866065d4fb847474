"""What the listener takes from callers, over real sockets."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from deepseek_gateway.edge import protocol, tls
from deepseek_gateway.edge.tls import TlsFiles, tls_files
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.server import GatewayServer, listen
from deepseek_gateway.settings import load_settings
from deepseek_gateway.state_dir import prepare_state
from deepseek_gateway.testing.certificates import Authority

HOST = b"host: h\r\n"
HEALTH_CHECK = Path(__file__).parents[3] / "deploy/docker/healthy.py"


@contextlib.asynccontextmanager
async def listening(state_dir: Path, **settings: object) -> AsyncGenerator[tuple[GatewayServer, int]]:
    """A gateway's own server; its engine is not there."""
    loaded = load_settings(state_dir=state_dir, upstreams="http://127.0.0.1:9", **settings)
    await asyncio.to_thread(prepare_state, loaded)
    async with Gateway(loaded) as gateway:
        listener = listen("127.0.0.1", 0, 5)
        server = GatewayServer(gateway, listener)
        is_up = asyncio.Event()

        async def ready(_: str) -> None:
            is_up.set()

        task = asyncio.create_task(server.serve(ready))
        await asyncio.wait({asyncio.ensure_future(is_up.wait()), task}, return_when=asyncio.FIRST_COMPLETED)
        try:
            yield server, listener.getsockname()[1]
        finally:
            server.stop()
            await task
            listener.close()


async def exchange(port: int, *parts: bytes, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
    """Send bytes as they are; the status and the whole answer, until the other side closes."""
    name = "localhost" if context else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(10):
            data = await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return int(data.split(b" ", 2)[1]) if data else 0, data


def message_of(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


LAST = b"connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "status", "part"),
    [
        (b"content-length: 3\r\ntransfer-encoding: chunked\r\n", 400, ""),
        (b"transfer-encoding: chunked\r\ncontent-length: 3\r\n", 400, ""),
        (b"content-length: 3\r\ncontent-length: 4\r\n", 400, ""),
        (b"content-length: 3\r\ncontent-length: 3\r\n", 400, ""),
        (b"content-length: +3\r\n", 400, ""),
        (b"content-length: 3, 3\r\n", 400, ""),
        (b"transfer-encoding: gzip, chunked\r\n", 400, "chunked"),
        (b"transfer-encoding: xchunked\r\n", 400, ""),
        (b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", 400, ""),
        (b"transfer-encoding : chunked\r\n", 400, ""),
        (b"x: a\r\n b\r\n", 400, ""),
        (b"x\x00y: a\r\n", 400, ""),
        (b"host: other\r\n", 400, "Host"),
        (b"x: " + b"a" * 40_000 + b"\r\n", 431, "32768"),
        (b"".join(b"x%d: a\r\n" % number for number in range(200)), 431, "100 headers"),
    ],
)
async def test_heads_that_two_servers_could_read_in_two_ways_or_are_too_large_are_refused(
    state_dir: Path, head: bytes, status: int, part: str
) -> None:
    async with listening(state_dir) as (_, port):
        got, answer = await exchange(port, b"POST /v1/generate HTTP/1.1\r\n" + HOST + head + b"\r\n")
    assert got == status
    assert answer.count(b"HTTP/1.1") == 1
    assert part in message_of(answer)


async def test_a_request_without_a_host_or_with_a_huge_path_is_refused(state_dir: Path) -> None:
    async with listening(state_dir) as (_, port):
        no_host = await exchange(port, b"GET /health HTTP/1.1\r\n\r\n")
        huge = await exchange(port, b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        connect = await exchange(port, b"CONNECT other:443 HTTP/1.1\r\n" + HOST + b"\r\n")
        old = await exchange(port, b"GET /health HTTP/1.0\r\n\r\n")
    assert [no_host[0], huge[0], connect[0], old[0]] == [400, 431, 400, 200]


async def test_a_head_that_comes_in_drops_ends_in_time(state_dir: Path) -> None:
    async with listening(state_dir, head_timeout_s=0.2) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            while not reader.at_eof() and not (answer := await asyncio.wait_for(some(reader), 10)):
                writer.write(b"x: y\r\n")  # each drop comes well before the time is over
        writer.close()
        silent = await exchange(port)
        blank = await exchange(port, b"\r\n")
    assert b" 408 " in answer
    assert (silent, blank) == ((0, b""), (0, b""))


async def some(reader: asyncio.StreamReader) -> bytes:
    """What comes within a moment, if anything."""
    try:
        async with asyncio.timeout(0.02):
            return await reader.read(4096)
    except TimeoutError:
        return b""


async def test_an_endless_header_is_refused_before_it_is_whole(state_dir: Path) -> None:
    async with listening(state_dir, max_head_bytes=8192) as (_, port):
        parts = [b"GET /health HTTP/1.1\r\nx: "] + [b"a" * 4000] * 5
        status, _ = await exchange(port, *parts)
    assert status == 431


async def test_a_body_that_nobody_reads_is_not_waited_for_without_end(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", 0.2)
    head = b"POST /v1/generate HTTP/1.1\r\n" + HOST + b"content-length: 1000\r\n\r\n"
    async with listening(state_dir) as (_, port):
        status, answer = await exchange(port, head, b"{")  # returns: the server closes
    assert (status, answer.count(b"HTTP/1.1")) == (401, 1)


async def test_a_kept_alive_connection_serves_one_request_after_the_other(state_dir: Path) -> None:
    ask = b"GET /health HTTP/1.1\r\n" + HOST
    async with listening(state_dir, head_timeout_s=5.0) as (_, port):
        _, answer = await exchange(port, ask + b"\r\n" + ask + b"\r\n", ask + LAST)
    assert answer.count(b"HTTP/1.1 200") == 3


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_of_ipv6_are_those_of_ipv4_too() -> None:
    with (
        listen("::", 0, 5) as listener,
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), 30) as caller,
    ):
        assert caller.getpeername()[0] == "127.0.0.1"
        accepted, address = listener.accept()
        accepted.close()
    assert address[0] == "::ffff:127.0.0.1"


async def test_more_connections_than_allowed_are_refused(state_dir: Path) -> None:
    async with listening(state_dir, max_connections=2) as (_, port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in held:
            writer.write(b"GET /health HTTP/1.1\r\n")
            await writer.drain()
        refused, answer = await exchange(port)
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
    assert (refused, "too many connections" in message_of(answer)) == (503, True)


async def test_every_answer_has_security_headers(state_dir: Path) -> None:
    async with listening(state_dir) as (_, port):
        for path in (b"/health", b"/nothing", b"/v1/models"):
            _, answer = await exchange(port, b"GET " + path + b" HTTP/1.1\r\n" + HOST + LAST)
            head = answer.partition(b"\r\n\r\n")[0].lower()
            for name in (
                b"x-content-type-options: nosniff",
                b"referrer-policy",
                b"content-security-policy",
                b"no-store",
            ):
                assert name in head, (path, name)
            assert b"strict-transport-security" not in head
            assert b"\r\nserver:" not in head


async def test_https_reloads_its_certificate_without_closing_connections(state_dir: Path, tmp_path: Path) -> None:
    first, second = Authority("first"), Authority("second")
    certificate, key = first.issue("localhost").write(tmp_path)
    ask = b"GET /health HTTP/1.1\r\n" + HOST
    async with listening(state_dir, tls_certificate=certificate, tls_key=key) as (server, port):
        assert server.url == f"https://127.0.0.1:{port}"
        status, answer = await exchange(port, ask + LAST, context=first.client_context())
        assert (status, b"strict-transport-security" in answer) == (200, True)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=first.client_context(), server_hostname="localhost"
        )
        second.issue("localhost").write(tmp_path)
        await server.reload_certificates()
        with pytest.raises(ssl.SSLError):
            await exchange(port, ask + LAST, context=first.client_context())
        assert (await exchange(port, ask + LAST, context=second.client_context()))[0] == 200
        writer.write(ask + LAST)  # the old connection goes on
        assert b" 200 " in await reader.read()
        writer.close()
        certificate.write_text("no certificate")
        await server.reload_certificates()
        assert (await exchange(port, ask + LAST, context=second.client_context()))[0] == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_is_refused(state_dir: Path, tmp_path: Path) -> None:
    authority = Authority("one")
    certificate, key = authority.issue("localhost").write(tmp_path)
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with listening(state_dir, tls_certificate=certificate, tls_key=key) as (_, port):
        assert await is_refused(port, b"GET /health HTTP/1.1\r\n" + HOST + LAST, context)


async def test_mtls_lets_only_callers_of_the_authority_in(state_dir: Path, tmp_path: Path) -> None:
    servers, callers = Authority("servers"), Authority("callers")
    certificate, key = servers.issue("localhost").write(tmp_path)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(callers.pem)
    mine, mine_key = callers.issue("caller").write(tmp_path / "mine")
    other, other_key = servers.issue("caller").write(tmp_path / "other")
    ask = b"GET /health HTTP/1.1\r\n" + HOST + LAST
    async with listening(state_dir, tls_certificate=certificate, tls_key=key, tls_client_ca=ca) as (_, port):
        good = servers.client_context()
        good.load_cert_chain(mine, mine_key)
        assert (await exchange(port, ask, context=good))[0] == 200
        bad = servers.client_context()
        bad.load_cert_chain(other, other_key)
        assert [await is_refused(port, ask, context) for context in (servers.client_context(), bad)] == [True, True]


async def test_a_caller_that_mtls_refuses_is_told_why_and_so_is_the_log(
    state_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, strangers = Authority("one"), Authority("strangers")
    certificate, key = authority.issue("localhost").write(tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    contexts = [authority.client_context() for _ in range(3)]
    contexts[1].load_cert_chain(*authority.issue("caller", days=-1).write(tmp_path / "old"))
    contexts[2].load_cert_chain(*strangers.issue("caller").write(tmp_path / "strange"))
    monkeypatch.setattr(tls, "_failures", tls._Failures())
    tls_settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": tmp_path / "ca.pem"}
    async with listening(state_dir, **tls_settings) as (_, port):
        told = [await asyncio.to_thread(refusal_told, port, context) for context in contexts]
    assert [reason.partition("ALERT_")[2] for reason in told] == [
        "CERTIFICATE_REQUIRED",
        "CERTIFICATE_EXPIRED",
        "UNKNOWN_CA",
    ]
    (line,) = [record.message for record in caplog.records if "did not get in" in record.message]
    assert "peer did not return a certificate" in line  # the others came too soon after it to be told of


def refusal_told(port: int, context: ssl.SSLContext) -> str:
    """The reason with which a server ends a caller's connection."""
    with socket.create_connection(("127.0.0.1", port), 30) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(b"GET /health HTTP/1.1\r\n" + HOST + LAST)
                return f"an answer: {secure.recv(100)!r}"
        except ssl.SSLError as error:
            return error.reason or ""


@pytest.mark.parametrize(
    ("days", "part"),
    [(90, None), (3, "ends in 3.0 days"), (-1, "certificate has expired")],
    ids=["far", "near", "past"],
)
def test_a_certificate_that_ends_is_spoken_of_before_callers_refuse_it(
    tmp_path: Path, days: float, part: str | None
) -> None:
    authority = Authority("one")
    certificate, key = authority.issue("localhost", days=days).write(tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    for client_ca in (None, tmp_path / "ca.pem"):
        warning = TlsFiles(certificate, key, client_ca).warning(time.time())
        assert warning is None if part is None else part in (warning or "")


async def is_refused(port: int, ask: bytes, context: ssl.SSLContext) -> bool:
    """Whether the handshake fails, on either side, or nothing comes after it."""
    try:
        return await exchange(port, ask, context=context) == (0, b"")
    except OSError:
        return True


@pytest.mark.parametrize("protocol", ["http", "https", "mtls"])
async def test_health_check_of_the_image_tells_a_gateway_from_none(
    state_dir: Path, tmp_path: Path, protocol: str
) -> None:
    authority = Authority("one")
    certificate, key = authority.issue("localhost").write(tmp_path)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    tls = {"tls_certificate": certificate, "tls_key": key} if protocol != "http" else {}
    if protocol == "mtls":
        tls["tls_client_ca"] = ca
    async with listening(state_dir, **tls) as (_, port):
        assert await health_check(port) == 0
        assert await health_check(port, GATEWAY_TLS_CERTIFICATE="/some.pem") == (1 if protocol == "http" else 0)
    assert await health_check(port) == 1


async def health_check(port: int, **variables: str) -> int:
    environment = os.environ | variables | {"GATEWAY_PORT": str(port)}
    process = await asyncio.create_subprocess_exec(sys.executable, HEALTH_CHECK, env=environment)
    return await process.wait()


async def test_names_that_fail_when_nobody_waits_any_more_are_not_logged(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    async with listening(state_dir) as (server, _):
        with server.handling_signals():
            for error in (socket.gaierror(-3, "Temporary failure"), ValueError("ours")):
                loop.create_future().set_exception(error)  # nobody asks for it
        loop.set_exception_handler(None)
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [ValueError]


def test_half_of_tls_and_files_that_do_not_match_are_explained(tmp_path: Path) -> None:
    one, other = Authority("one"), Authority("other")
    certificate, key = one.issue("localhost").write(tmp_path / "one")
    _, wrong = other.issue("localhost").write(tmp_path / "other")
    assert tls_files(None, None, None) is None
    with pytest.raises(ConfigurationError, match="GATEWAY_TLS_KEY"):
        tls_files(certificate, None, None)
    for files in (TlsFiles(certificate, wrong), TlsFiles(tmp_path / "gone", key), TlsFiles(certificate, key, key)):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            files.load()
