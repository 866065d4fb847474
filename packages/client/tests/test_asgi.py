"""Apps in this process, without sockets: every chunk as it is sent, a disconnect when the answer is closed."""

import asyncio
import json
import threading

import pytest

from deepseek_client import (
    APIConnectionError,
    APITimeoutError,
    AsyncDeepSeek,
    ConfigurationError,
    DeepSeek,
    StreamTruncatedError,
    Timeout,
)
from deepseek_client.asgi import ASGITransport, AsyncASGITransport
from deepseek_client.sse import DONE, encode_event
from deepseek_client.transport.library import LIBRARIES, library

WAIT_S = 10
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


class App:
    """Sends one event each time that it is allowed to, and notes what happened to it."""

    def __init__(self, kit, num_events=3):
        self.events = [encode_event(json.dumps(kit.text_event(f"w{n} "))) for n in range(1, num_events)]
        self.events += [encode_event(json.dumps(kit.text_event("end", "stop"))), DONE]
        self.go = threading.Semaphore(0)
        self.gone = threading.Event()
        self.seen = []
        self.num_sent = 0
        self.body = b""
        self.scope = None

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.live(scope, receive, send)
            return
        self.scope = scope
        while (message := await receive())["type"] == "http.request":
            self.body += message["body"]
            if not message["more_body"]:
                break
        asyncio.create_task(self.watch(receive)).add_done_callback(self.seen.append)
        await send(START)
        for event in self.events:
            while not self.go.acquire(blocking=False):
                if self.gone.is_set():
                    return
                await asyncio.sleep(0.001)
            await send({"type": "http.response.body", "body": event, "more_body": True})
            self.num_sent += 1
        await send({"type": "http.response.body"})

    async def live(self, scope, receive, send):
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["name"] = "seven"
        self.seen.append("started")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.seen.append("ended")
        await send({"type": "lifespan.shutdown.complete"})

    async def watch(self, receive):
        assert (await receive())["type"] == "http.disconnect"
        self.gone.set()


@pytest.fixture(params=["sync", "async"])
async def in_process(request, kit):
    """Makes clients of one kind, answered by an app."""
    clients = []

    def make(app, *, timeout=None, **settings):
        is_sync = request.param == "sync"
        transport = (ASGITransport if is_sync else AsyncASGITransport)(app, **settings)
        client = (DeepSeek if is_sync else AsyncDeepSeek)(transport=transport, timeout=timeout, max_retries=0)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await kit.settle(client.close())


async def test_each_chunk_arrives_when_it_is_sent_and_the_app_sees_a_server_s_scope(in_process, kit):
    app = App(kit)
    client = in_process(app)
    app.go.release()
    async with kit.entered(client.generate_stream("Hi")) as stream:
        assert await kit.take(stream) == "w1 "
        assert app.num_sent == 1
        app.go.release(3)
        assert await kit.collect(stream) == ["w2 ", "end"]
    assert json.loads(app.body)["prompt"] == "Hi"
    scope = app.scope
    assert (scope["method"], scope["path"], scope["raw_path"]) == ("POST", "/v1/generate", b"/v1/generate")
    assert (scope["server"], scope["state"]) == (("127.0.0.1", 8080), {"name": "seven"})
    assert dict(scope["headers"])[b"content-type"] == b"application/json"
    await kit.settle(client.close())
    assert [item for item in app.seen if isinstance(item, str)] == ["started", "ended"]


async def test_closing_the_answer_is_a_disconnect(in_process, kit):
    app = App(kit)
    app.go.release()
    async with kit.entered(in_process(app).generate_stream("Hi")) as stream:
        await kit.take(stream)
    await kit.until(app.gone.is_set)


async def test_what_nobody_reads_holds_the_app_back(in_process, kit):
    app = App(kit, num_events=100)
    app.go.release(1000)
    client = in_process(app, max_buffered_bytes=300)
    async with kit.entered(client.generate_stream("Hi")) as stream:
        await kit.take(stream)
        await kit.until(lambda: app.num_sent > 1)
        await asyncio.sleep(0.01)
        assert app.num_sent < 10
        assert len(await kit.collect(stream)) == 99


async def test_an_app_that_raises_raises_at_the_caller_or_breaks_as_a_server_does(in_process, kit):
    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        if scope["path"].endswith("chat/completions"):
            await send(START)
            await send({"type": "http.response.body", "body": encode_event("{}")[:5], "more_body": True})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await kit.settle(in_process(app).generate("Hi"))
    client = in_process(app, raise_app_exceptions=False)
    with pytest.raises(Exception, match="500"):
        await kit.settle(client.generate("Hi"))
    with pytest.raises(StreamTruncatedError) as caught:
        await kit.collect(await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, stream=True)))
    assert isinstance(caught.value.__cause__.__cause__.__cause__, ZeroDivisionError)


async def test_an_app_that_just_ends_is_a_broken_connection(in_process, kit):
    async def app(scope, receive, send):
        pass

    with pytest.raises(APIConnectionError, match="ended before its answer was whole"):
        await kit.settle(in_process(app).generate("Hi"))


async def test_an_app_that_is_silent_is_a_timeout_and_hears_of_it(in_process, kit):
    gone = threading.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            raise NotImplementedError
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    with pytest.raises(APITimeoutError):
        await kit.settle(in_process(app, timeout=Timeout(first_token_s=0.02)).generate("Hi"))
    await kit.until(gone.is_set)


async def test_an_app_whose_start_fails_says_so(in_process, kit):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no disk"})

    with pytest.raises(RuntimeError, match="did not start: no disk"):
        await kit.settle(in_process(app).generate("Hi"))


async def test_a_cancelled_call_is_a_disconnect(kit):
    app = App(kit)
    async with AsyncDeepSeek(transport=AsyncASGITransport(app)) as client:
        reading = asyncio.create_task(kit.collect(client.generate_stream("Hi")))
        await kit.until(lambda: app.scope is not None)
        reading.cancel()
        await kit.until(app.gone.is_set)
        with pytest.raises(asyncio.CancelledError):
            await reading


def test_the_next_event_loop_starts_the_app_anew(kit):
    app = App(kit)
    app.go.release(100)
    client = AsyncDeepSeek(transport=AsyncASGITransport(app))

    async def ask():
        return await kit.collect(client.generate_stream("Hi"))

    assert asyncio.run(ask()) == asyncio.run(ask()) == ["w1 ", "w2 ", "end"]
    assert [item for item in app.seen if isinstance(item, str)] == ["started", "started"]


@pytest.mark.parametrize("name", LIBRARIES)
async def test_it_serves_plain_clients_of_both_libraries_too(kit, name):
    async def app(scope, receive, send):
        async with asyncio.timeout(WAIT_S):
            await send({"type": "http.response.start", "status": 201, "headers": []})
            await send({"type": "http.response.body", "body": b"query " + scope["query_string"]})

    httpx = pytest.importorskip(name)
    async with httpx.AsyncClient(transport=AsyncASGITransport(app), base_url="http://app") as client:
        answer = await client.get("/a%20b", params={"x": "1"})
        assert (answer.status_code, answer.text) == (201, "query x=1")
    with httpx.Client(transport=ASGITransport(app), base_url="http://app") as client:
        assert client.get("/", params={"x": "2"}).text == "query x=2"


def test_a_transport_beside_a_client_is_a_mistake():
    with library().Client() as mine, pytest.raises(ConfigurationError, match="name one"):
        DeepSeek(http_client=mine, transport=ASGITransport(None))
