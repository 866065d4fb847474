"""Servers that storm, stay silent, or answer nonsense, over a socket: which exception, how often, and that it ends."""

import asyncio
import gzip
import itertools
import json
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deepseek_client import AsyncDeepSeek, errors
from deepseek_client.settings import Timeout
from deepseek_client.sse import DONE, encode_event


async def call(kit, client, how):
    """A plain call, or a stream read to its end."""
    if how == "plain":
        return await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, model="m"))
    stream = await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, model="m", stream=True))
    return await kit.collect(stream)


each_way = pytest.mark.parametrize("how", ["plain", "stream"])


@each_way
@pytest.mark.parametrize("status", [429, 503])
async def test_a_storm_of_refusals_is_answered_with_few_attempts(server, connect, kit, how, status, monkeypatch):
    """40 callers at once, each allowed 5 retries: 40 requests and the client's 10 retries, not 240."""
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("deepseek_client.transport.drivers.time.sleep", waits.append)
    server.script(kit.reply({"error": {"message": "busy"}}, status, retry_after="7"))
    client = connect(max_retries=5)

    def failed(result):
        assert type(result) is errors.class_of_status(status)
        assert result.retry_after == 7.0
        return result.retries_taken

    if isinstance(client, AsyncDeepSeek):
        real = asyncio.sleep
        monkeypatch.setattr(
            "deepseek_client.transport.drivers.asyncio.sleep", lambda s: sleep(s) if s == 7 else real(s)
        )
        calls = [call(kit, client, how) for _ in range(40)]
        retries = [failed(result) for result in await asyncio.gather(*calls, return_exceptions=True)]
    else:

        def one(_number):
            try:
                asyncio.run(call(kit, client, how))
            except errors.APIStatusError as error:
                return failed(error)

        with ThreadPoolExecutor(8) as executor:
            retries = await asyncio.to_thread(lambda: list(executor.map(one, range(40))))
    assert (len(server.requests), sum(retries), waits) == (50, 10, [7.0] * 10)


@each_way
async def test_a_storm_meets_the_deadline_and_not_its_retry_after(server, connect, kit, how):
    server.script(kit.reply({}, 429, retry_after="30"))
    with pytest.raises(errors.RateLimitError) as caught:
        await call(kit, connect(timeout=20.0), how)
    assert (caught.value.retries_taken, caught.value.retry_after) == (0, 30.0)


def silent(kit, when):
    """Says nothing more from there on."""

    def handler(connection):
        if when != "head":
            is_stream = connection.request.is_stream
            connection.head(content_type="text/event-stream" if is_stream else "application/json")
        if when == "middle":
            half = encode_event(json.dumps(kit.chat_event("Hel"))) if connection.request.is_stream else b'{"id":'
            connection.chunk(half)
        connection.until_closed()

    return handler


@each_way
@pytest.mark.parametrize("when", ["head", "body", "middle"])
async def test_silence_is_a_timeout_of_its_own_class(server, connect, kit, how, when):
    server.script(silent(kit, when))
    is_idle = (how, when) == ("stream", "middle")
    timeout = Timeout(idle_s=0.2) if is_idle else Timeout(first_token_s=0.2)
    with pytest.raises(errors.IdleTimeout if is_idle else errors.FirstTokenTimeout) as caught:
        await call(kit, connect(timeout=timeout), how)
    assert (caught.value.retries_taken, len(server.requests) <= 1) == (0, True)
    server.script(silent(kit, when))
    with pytest.raises(errors.DeadlineExceeded):
        await call(kit, connect(timeout=0.2), how)
    await kit.until(server.disconnected.is_set)


async def test_a_server_that_never_accepts_is_a_connect_timeout(connect, kit):
    with socket.socket() as listener:  # its queue is full: the next connection waits for ever
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(errors.ConnectTimeout):
            await call(kit, connect(base_url=url, timeout=Timeout(connect_s=0.2), max_retries=0), "plain")
        for sock in waiting:
            sock.close()


@each_way
async def test_headers_that_drip_do_not_outlast_the_whole_call_s_limit(server, connect, kit, how):
    """Each byte comes in time for the limit of a read; a call whose limit did not hold would take 30 s."""
    whole = []

    def drip(connection):
        connection.send(b"HTTP/1.1 200 OK\r\nx-drip: ")
        for _ in range(3000):
            connection.send(b"a")
            time.sleep(0.01)
        whole.append(connection)
        connection.send(b"\r\n\r\n")

    server.script(drip)
    with pytest.raises(errors.DeadlineExceeded):
        await call(kit, connect(timeout=0.3, max_retries=0), how)
    assert not whole


async def test_blank_lines_for_ever_are_no_answer(server, connect, kit):
    def queue(connection):
        connection.head(content_type="application/json")
        while True:
            connection.chunk(b"\n")
            time.sleep(0.01)

    server.script(queue)
    with pytest.raises(errors.FirstTokenTimeout):
        await call(kit, connect(timeout=Timeout(first_token_s=0.3)), "plain")


@each_way
@pytest.mark.parametrize("status", [200, 500])
async def test_a_body_without_an_end_is_read_to_a_limit(server, connect, kit, how, status, monkeypatch):
    for limit in ("MAX_REFUSAL_BYTES", "MAX_ANSWER_BYTES"):
        monkeypatch.setattr(f"deepseek_client.transport.library.{limit}", 100_000)

    def endless(connection):
        connection.head(status, content_type="application/json")
        while True:
            connection.chunk(b"[" * 10_000)

    server.script(endless)
    expected = [errors.InternalServerError] if status == 500 else [errors.ResponseError, errors.StreamProtocolError]
    with pytest.raises(tuple(expected)):
        await call(kit, connect(max_retries=0), how)


ODD_BODIES = {
    "nested": (b'{"error": {"message": "busy"}}', "application/json", "busy"),
    "flat": (b'{"object": "error", "message": "busy"}', "application/json", "busy"),
    "a string": (b'"busy"', "application/json", "busy"),
    "a text": (b"busy", "text/plain", "busy"),
    "a list": (b'[{"error": {"message": "busy"}}]', "application/json", "busy"),
    "fastapi": (b'{"detail": [{"loc": ["body", "n"], "msg": "busy"}]}', "application/json", "n: busy"),
    "json as octets": (b'{"error": {"message": "busy"}}', "application/octet-stream", "busy"),
    "json as events": (b'{"error": {"message": "busy"}}', "text/event-stream", "busy"),
    "html": (b"<html>busy</html>", "text/html", "is the base URL right"),
    "nothing": (b"", "text/plain", "Internal Server Error"),
    "not utf-8": (b"\xff\xfe", "application/json", "\ufffd"),
}


@each_way
@pytest.mark.parametrize("body", ODD_BODIES)
async def test_a_500_says_what_is_in_it_whatever_its_shape(server, connect, kit, how, body):
    content, kind, message = ODD_BODIES[body]
    server.script(kit.reply(content, 500, kind, x_request_id="r-1"))
    with pytest.raises(errors.InternalServerError, match=message) as caught:
        await call(kit, connect(max_retries=0), how)
    assert caught.value.request_id == "r-1"
    zipped = gzip.compress(content)
    server.script(kit.reply(zipped, 500, kind, content_encoding="gzip"))
    with pytest.raises(errors.InternalServerError, match=message):
        await call(kit, connect(max_retries=0), how)


@each_way
async def test_an_answer_that_is_not_the_gzip_it_says_is_a_broken_connection(server, connect, kit, how):
    kind = "application/json" if how == "plain" else "text/event-stream"
    server.script(kit.reply(b"not gzip at all", 200, kind, content_encoding="gzip"))
    with pytest.raises((errors.APIConnectionError, errors.StreamTruncatedError)):
        await call(kit, connect(max_retries=0), how)


@each_way
async def test_a_page_with_status_200_is_an_error_that_shows_it(server, connect, kit, how):
    server.script(kit.reply(b"<html>Sign in</html>", content_type="text/html"))
    with pytest.raises((errors.ResponseValidationError, errors.StreamProtocolError), match="Sign in"):
        await call(kit, connect(), how)
    assert len(server.requests) == 1


@each_way
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(server, connect, kit, how, status):
    server.script(kit.reply(b"", status, location="http://elsewhere.invalid/"))
    with pytest.raises(errors.APIStatusError, match=str(status)):
        await call(kit, connect(), how)
    assert len(server.requests) == 1


async def test_a_thousand_streams_at_once_leave_no_connection_and_no_task(kit):
    """Against a server on the same loop; all of them are begun before the first one ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip(f"{hard} open files are too few")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    num_streams, all_begun, count, open_now = 1000, asyncio.Event(), itertools.count(1), set()
    begin = encode_event(json.dumps(kit.text_event("Hel")))
    end = encode_event(json.dumps(kit.text_event("lo", "stop"))) + DONE

    async def serve(reader, writer):
        open_now.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                writer.write(b"%x\r\n%b\r\n" % (len(begin), begin))
                if next(count) == num_streams:
                    all_begun.set()
                await all_begun.wait()
                writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(end), end))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            open_now.discard(writer)

    async def read(client):
        async with client.generate_stream("Hi") as stream:
            return "".join([piece async for piece in stream])

    try:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024) as listener:
            url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            async with AsyncDeepSeek(base_url=url, timeout=Timeout(connect_s=60)) as client:
                texts = await asyncio.gather(*(read(client) for _ in range(num_streams)))
                assert texts == ["Hello"] * num_streams
                pool = client._transport._pools[asyncio.get_running_loop()].client._transport._pool
                assert pool._requests == []
                assert all(connection.is_idle() or connection.is_closed() for connection in pool.connections)
                assert (await read(client)) == "Hello"
            await kit.until(lambda: not open_now)
            await kit.until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
