"""The HTTP library may be httpx, mocked by respx, or httpx2, and its client the caller's."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest

from deepseek_client import APIConnectionError, AsyncDeepSeek, ConfigurationError, DeepSeek, DeepSeekError, errors
from deepseek_client.transport.library import LIBRARIES, library

httpx = library()


@pytest.fixture
def respx():
    """The mocker that many suites use; it knows httpx only."""
    if httpx.__name__ != "httpx":
        pytest.skip("respx does not see what httpx2 sends")
    with pytest.importorskip("respx").mock as router:
        yield router


def test_respx_sees_our_requests(respx, kit):
    route = respx.post("http://h/v1/generate").respond(json=kit.GENERATION)
    with DeepSeek(base_url="http://h") as client:
        assert client.generate("Hi").text == "Hello"
    assert "authorization" not in route.calls[0].request.headers
    assert route.calls[0].request.content == b'{"prompt":"Hi","max_tokens":512}'


async def test_a_stream_mocked_whole_is_read_like_any_other(respx):
    body = b'data: {"id":"x","text":"Hel"}\n\ndata: {"id":"x","text":"lo","finish_reason":"stop"}\n\ndata: [DONE]\n\n'
    respx.post("http://h/v1/generate").respond(content=body, content_type="text/event-stream")
    async with AsyncDeepSeek(base_url="http://h") as client, client.generate_stream("Hi") as stream:
        assert [piece async for piece in stream] == ["Hel", "lo"]


def failing(failure, asked):
    """The library's own mock of a connection that fails."""

    def handle(request):
        asked.append(request)
        raise failure("it failed") if issubclass(failure, httpx.RequestError) else failure

    return httpx.MockTransport(handle)


@pytest.mark.parametrize(
    ("name", "expected", "calls"),
    [
        ("ConnectTimeout", errors.ConnectTimeout, 2),
        ("PoolTimeout", errors.PoolTimeout, 2),
        ("ReadTimeout", errors.FirstTokenTimeout, 1),
        ("WriteTimeout", errors.APITimeoutError, 1),
        ("ConnectError", errors.ConnectError, 2),
        ("ReadError", APIConnectionError, 2),
        ("RemoteProtocolError", APIConnectionError, 2),
        ("ProxyError", errors.ConnectError, 2),
        ("LocalProtocolError", ConfigurationError, 1),
    ],
)
def test_every_failure_of_the_library_becomes_ours(name, expected, calls):
    failure, asked = getattr(httpx, name), []
    client = DeepSeek(base_url="http://h", max_retries=1, transport=failing(failure, asked))
    with client, pytest.raises(expected) as caught:
        client.generate("Hi")
    assert type(caught.value) is expected
    assert isinstance(caught.value.__cause__, failure)
    assert len(asked) == calls


def test_an_exception_that_is_not_the_library_s_passes_untouched():
    transport = failing(ZeroDivisionError, [])
    with DeepSeek(base_url="http://h", transport=transport) as client, pytest.raises(ZeroDivisionError):
        client.generate("Hi")


def test_a_caller_s_client_is_used_and_left_open(server, kit):
    server.script(kit.reply(kit.GENERATION))
    with httpx.Client(headers={"x-mine": "1"}) as mine:
        with DeepSeek(base_url=server.url, http_client=mine) as client:
            client.generate("Hi")
        assert not mine.is_closed
    assert server.requests[0].headers["x-mine"] == "1"


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_client_of_either_library_is_accepted(server, kit, kind, name):
    other = pytest.importorskip(name)
    server.script(kit.events(kit.text_event("Hello", "stop")), lambda connection: False)

    async def asynchronous():
        async with other.AsyncClient() as mine:
            client = AsyncDeepSeek(base_url=server.url, http_client=mine, max_retries=0)
            assert await kit.collect(client.generate_stream("Hi")) == ["Hello"]
            with pytest.raises(APIConnectionError):
                await client.generate("Hi")

    def synchronous():
        with other.Client() as mine:
            client = DeepSeek(base_url=server.url, http_client=mine, max_retries=0)
            assert list(client.generate_stream("Hi")) == ["Hello"]
            with pytest.raises(APIConnectionError):
                client.generate("Hi")

    asyncio.run(asynchronous()) if kind == "async" else synchronous()


@pytest.mark.parametrize("is_used", [True, False])
async def test_a_closed_client_says_so(connect, server, kit, is_used):
    client = connect()
    if is_used:
        server.script(kit.reply(kit.GENERATION))
        await kit.settle(client.generate("Hi"))
    await kit.settle(client.close())
    with pytest.raises(DeepSeekError, match="the client has been closed"):
        await kit.settle(client.generate("Hi"))


def test_a_client_that_was_never_used_closes_the_transport_that_it_was_given():
    class Transport(httpx.BaseTransport):
        is_closed = False

        def close(self):
            self.is_closed = True

    given = Transport()
    DeepSeek(transport=given).close()
    assert given.is_closed


@pytest.mark.parametrize("name", [*LIBRARIES, "", "requests"])
def test_the_environment_says_which_http_library_is_used(server, kit, name):
    """In a process of its own: a library is chosen once."""
    if name in LIBRARIES:
        pytest.importorskip(name)
    server.script(kit.reply(kit.GENERATION))
    program = (
        "import sys\n"
        "from deepseek_client import ConfigurationError, DeepSeek\n"
        "try:\n"
        f"    answer = DeepSeek(base_url={server.url!r}).generate('Hi')\n"
        "    print(answer, *sorted({'httpx', 'httpx2'} & {*sys.modules}))\n"
        "except ConfigurationError as error:\n"
        "    print(error)"
    )
    environment = {**os.environ, "DEEPSEEK_HTTP_LIBRARY": name}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    expected = {
        "httpx": "Hello httpx",
        "httpx2": "Hello httpx2",
        "": f"Hello {next(filter(find_spec, LIBRARIES))}",
        "requests": "DEEPSEEK_HTTP_LIBRARY='requests' must be httpx or httpx2, and installed",
    }
    assert done.stdout.strip() == expected[name]


async def test_a_server_without_tls_is_a_tls_error(connect, kit):
    def answer_in_plain(listener):
        sock, _ = listener.accept()
        with sock:
            sock.recv(4096)
            sock.sendall(b"HTTP/1.1 400 X\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_in_plain, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(errors.TLSError, match="no secure connection") as caught:
            await kit.settle(connect(base_url=url, max_retries=0).generate("Hi"))
        thread.join(10)
    assert isinstance(caught.value, errors.ConnectError)
    assert (caught.value.retries_taken, caught.value.elapsed >= 0) == (0, True)


def test_httpx_s_own_mock_is_read_although_it_holds_the_whole_body(kit):
    def answer(request):
        if b'"stream"' in request.content:
            return httpx.Response(200, content=b'data: {"id":"x","text":"Hi","finish_reason":"stop"}\n\n')
        return httpx.Response(200, json=kit.GENERATION)

    client = DeepSeek(base_url="http://h", http_client=httpx.Client(transport=httpx.MockTransport(answer)))
    assert client.generate("Hi").text == "Hello"
    assert list(client.generate_stream("Hi")) == ["Hi"]
