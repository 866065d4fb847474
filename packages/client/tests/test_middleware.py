"""Functions of the caller's around each attempt, and a function that gives the key."""

import json
from dataclasses import replace

import pytest

from deepseek_client import (
    APIConnectionError,
    AsyncDeepSeek,
    AsyncHTTPResponse,
    BadRequestError,
    ConfigurationError,
    DeepSeek,
    HTTPResponse,
    StreamTruncatedError,
)


class Log:
    """A middleware of either kind that notes what it sees."""

    def __init__(self, name=""):
        self.name = name
        self.lines = []

    def __call__(self, request, send):
        self.note(request)
        try:
            response = send(request)
        except APIConnectionError as error:
            self.lines.append(f"{self.name}{type(error).__name__}")
            raise
        self.lines.append(f"{self.name}{response.status}")
        return HTTPResponse(response.status, response.headers, self.watched(response.chunks))

    def note(self, request):
        self.lines.append(f"{self.name}send {request.retries_taken}")

    def watched(self, chunks):
        try:
            yield from chunks
            self.lines.append(f"{self.name}end")
        except APIConnectionError as error:
            self.lines.append(f"{self.name}{type(error).__name__}")
            raise
        except GeneratorExit:
            self.lines.append(f"{self.name}left")
            raise


class AsyncLog(Log):
    async def __call__(self, request, send):
        self.note(request)
        try:
            response = await send(request)
        except APIConnectionError as error:
            self.lines.append(f"{self.name}{type(error).__name__}")
            raise
        self.lines.append(f"{self.name}{response.status}")
        return AsyncHTTPResponse(response.status, response.headers, self.watched(response.chunks))

    async def watched(self, chunks):
        try:
            async for chunk in chunks:
                yield chunk
            self.lines.append(f"{self.name}end")
        except APIConnectionError as error:
            self.lines.append(f"{self.name}{type(error).__name__}")
            raise
        except GeneratorExit:
            self.lines.append(f"{self.name}left")
            raise


@pytest.fixture
def make_log(request):
    kind = request.node.callspec.params["connect"]
    return Log if kind == "sync" else AsyncLog


async def test_each_attempt_is_seen_with_its_status_and_its_end(server, connect, kit, make_log):
    server.script(kit.reply({"error": {"message": "later"}}, 503, retry_after="0"), kit.reply(kit.GENERATION))
    log = make_log()
    assert (await kit.settle(connect(middleware=[log]).generate("Hi"))).text == "Hello"
    assert log.lines == ["send 0", "503", "end", "send 1", "200", "end"]


async def test_the_first_is_the_outermost(server, connect, kit, make_log):
    server.script(kit.reply({"error": {"message": "no"}}, 400))
    outer, inner = make_log("outer "), make_log("inner ")
    inner.lines = outer.lines
    with pytest.raises(BadRequestError):
        await kit.settle(connect(middleware=[outer, inner]).generate("Hi", model="m"))
    assert outer.lines == [
        "outer send 0",
        "inner send 0",
        "inner 400",
        "outer 400",
        "inner end",
        "outer end",
    ]


async def test_a_stream_is_seen_to_its_end_its_break_or_the_caller_s_leaving(server, connect, kit, make_log):
    log = make_log()
    client = connect(middleware=[log], max_retries=0)
    server.script(kit.events(kit.text_event("Hel"), kit.text_event("lo", "stop")))
    assert await kit.collect(client.generate_stream("Hi")) == ["Hel", "lo"]
    assert log.lines == ["send 0", "200", "end"]

    def breaks(connection):
        connection.head()
        connection.chunk(b'data: {"id": "x", "text": "Hel"}\n\n')
        return False

    log.lines.clear()
    server.script(breaks)
    with pytest.raises(StreamTruncatedError):
        await kit.collect(client.generate_stream("Hi"))
    assert log.lines == ["send 0", "200", "APIConnectionError"]

    def endless(connection):
        connection.head()
        connection.chunk(b'data: {"id": "x", "text": "Hel"}\n\n')
        connection.until_closed()

    log.lines.clear()
    server.disconnected.clear()
    server.script(endless)
    async with kit.entered(client.generate_stream("Hi")) as stream:
        assert await kit.take(stream) == "Hel"
    assert log.lines == ["send 0", "200", "left"]
    await kit.until(server.disconnected.is_set)


async def test_the_limits_of_a_stream_hold_through_middleware(server, connect, kit, make_log):
    from deepseek_client import APITimeoutError, Timeout

    def silent(connection):
        connection.head()
        connection.chunk(b'data: {"id": "x", "text": "Hel"}\n\n')
        connection.until_closed()

    server.script(silent)
    log = make_log()
    client = connect(middleware=[log], max_retries=0, timeout=Timeout(idle_s=0.05))
    with pytest.raises(APITimeoutError) as caught:
        await kit.collect(client.generate_stream("Hi"))
    assert (caught.value.phase, caught.value.partial_text) == ("idle", "Hel")
    assert log.lines[-1] == type(caught.value).__name__


async def test_no_answer_is_seen_as_an_exception(server, connect, kit, make_log):
    server.script(lambda connection: False)
    log = make_log()
    with pytest.raises(APIConnectionError):
        await kit.settle(connect(middleware=[log], max_retries=1).generate("Hi"))
    lines = ["send 0", "APIConnectionError", "send 1", "APIConnectionError"]
    assert log.lines == lines


async def test_it_may_change_the_request_or_answer_itself(server, connect, kit, make_log):
    server.script(kit.reply(kit.GENERATION))
    is_async = make_log is AsyncLog

    def signed(request):
        assert request.json["prompt"] == "Hi"
        return replace(request, headers={**request.headers, "x-signature": str(len(request.body))})

    def sync_sign(request, send):
        return send(signed(request))

    async def async_sign(request, send):
        return await send(signed(request))

    await kit.settle(connect(middleware=[async_sign if is_async else sync_sign]).generate("Hi"))
    assert server.requests[0].headers["x-signature"] == str(len(server.requests[0].body))

    body = json.dumps(kit.GENERATION | {"text": "from the cache"}).encode()

    async def pieces():
        yield body

    def sync_cache(request, send):
        return HTTPResponse(200, {}, iter([body[:5], b"", body[5:]]))

    async def async_cache(request, send):
        return AsyncHTTPResponse(200, {}, pieces())

    answer = await kit.settle(connect(middleware=[async_cache if is_async else sync_cache]).generate("Hi"))
    assert answer.text == "from the cache"
    assert len(server.requests) == 1


async def test_it_may_send_twice_and_its_own_exceptions_are_the_caller_s(server, connect, kit, make_log):
    is_async = make_log is AsyncLog
    server.script(kit.reply({}, 500), kit.reply(kit.GENERATION))

    def twice(request, send):
        send(request)
        return send(request)

    async def twice_async(request, send):
        await send(request)
        return await send(request)

    client = connect(middleware=[twice_async if is_async else twice])
    assert (await kit.settle(client.generate("Hi"))).text == "Hello"
    assert len(server.requests) == 2

    def fails(request, send):
        send(request)
        raise ZeroDivisionError

    async def fails_async(request, send):
        await send(request)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await kit.settle(client.with_options(middleware=[fails_async if is_async else fails]).generate("Hi"))
    assert (await kit.settle(client.with_options(middleware=[]).generate("Hi"))).text == "Hello"


async def test_the_key_may_come_from_a_function_at_each_attempt(server, connect, kit, make_log):
    keys = iter(["key-one", "key-two", "key-three"])
    server.script(kit.reply({"error": {"message": "key-one is slow"}}, 429, retry_after="0"), kit.reply(kit.GENERATION))

    async def later():
        return next(keys)

    client = connect(api_key=later if make_log is AsyncLog else lambda: next(keys))
    await kit.settle(client.generate("Hi"))
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer key-one", "Bearer key-two"]
    assert "key-" not in repr(client)
    server.script(kit.reply({"error": {"message": "key-three is not known"}}, 401))
    with pytest.raises(Exception, match=r"\*\*\* is not known"):
        await kit.settle(client.generate("Hi"))
    server.script(kit.reply(kit.GENERATION))
    await kit.settle(client.with_options(api_key="fixed").generate("Hi", extra_headers={}))
    assert server.requests[-1].headers["authorization"] == "Bearer fixed"


async def test_a_function_may_give_no_key(server, connect, kit):
    server.script(kit.reply(kit.GENERATION))
    await kit.settle(connect(api_key=lambda: None).generate("Hi"))
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("key", ["a\nb", 7])
async def test_a_function_that_gives_no_usable_key_is_the_caller_s_mistake(server, connect, kit, key):
    with pytest.raises(ConfigurationError):
        await kit.settle(connect(api_key=lambda: key).generate("Hi"))
    assert server.requests == []


def test_a_coroutine_function_needs_the_async_client(server):
    async def later():
        return "key"

    with (
        DeepSeek(base_url=server.url, api_key=later) as client,
        pytest.raises(ConfigurationError, match="AsyncDeepSeek"),
    ):
        client.generate("Hi")
    assert AsyncDeepSeek(api_key=later)
