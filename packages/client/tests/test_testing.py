"""deepseek_client.testing, as our users' tests use it: on a socket and in process, with both clients."""

import json

import pytest

from deepseek_client import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncDeepSeek,
    DeepSeek,
    EmptyResponseError,
    RateLimitError,
    ResponseValidationError,
    StreamTruncatedError,
    Timeout,
    tool,
)
from deepseek_client.testing import (
    FakeServer,
    answer,
    blank,
    cut,
    deepseek_server,  # noqa: F401  the fixture
    drop,
    error,
    flat_error,
    html,
    keep_alives,
    models,
    record,
    replay,
    reply,
    silence,
    slowly,
    storm,
)

KEY = "dsk_test_secretsecret1234"


@pytest.fixture(params=["sync socket", "async socket", "sync in process", "async in process"])
async def ask(request, server, kit):
    """Makes clients of the fake server, of each kind."""
    clients = []

    def make(**options):
        is_sync = request.param.startswith("sync")
        if request.param.endswith("socket"):
            options |= {"base_url": server.url}
        else:
            options |= {"transport": server.transport() if is_sync else server.async_transport()}
        clients.append((DeepSeek if is_sync else AsyncDeepSeek)(api_key=KEY, **options))
        return clients[-1]

    yield make
    for client in clients:
        await kit.settle(client.close())


async def test_an_answer_fits_each_route_whole_and_streamed(server, ask, kit):
    server.script(answer("a few words"))
    client = ask()
    assert (await kit.settle(client.generate("Hi"))).text == "a few words"
    assert await kit.collect(client.generate_stream("Hi")) == ["a", " few", " words"]
    completion = await kit.settle(client.completions.create(prompt="Hi", model="m"))
    assert completion.choices[0].text == "a few words"
    stream = await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, stream=True))
    assert (await kit.settle(stream.until_done())).choices[0].message.content == "a few words"
    assert stream.usage.total_tokens == 5
    assert (await kit.settle(client.models.list())).data[0].id == "m"
    server.requests[0].assert_json(prompt="Hi", stream=None)
    with pytest.raises(AssertionError, match=r"POST /v1/generate has prompt='Hi', not 'Ho'"):
        server.requests[0].assert_json(prompt="Ho")


async def test_reasoning_and_tool_calls_arrive_and_loops_end(server, ask, kit):
    @tool
    def price(ticker: str) -> float:
        """A price."""
        return {"a": 1.5}[ticker]

    called = answer("", reasoning="I look it up.", tool_calls=[("price", {"ticker": "a"})])
    server.script(called, answer("1.5", reasoning="So."), called)
    client = ask()
    run = await kit.settle(client.chat.completions.run_tools(messages=kit.MESSAGES, tools=[price]))
    assert (run.text, run.rounds) == ("1.5", 2)
    sent = server.requests[1].json["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert (sent[1]["reasoning_content"], sent[2]["content"]) == ("I look it up.", "1.5")
    stream = await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, stream=True))
    message = (await kit.settle(stream.until_done())).choices[0].message
    assert message.reasoning_content == "I look it up."
    assert json.loads(message.tool_calls[0].function.arguments) == {"ticker": "a"}


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (error(503, "busy"), APIStatusError),
        (flat_error(400, "no such field"), APIStatusError),
        (html(), ResponseValidationError),
        (html(502), APIStatusError),
        (blank(), EmptyResponseError),
        (blank(b"\n\n"), EmptyResponseError),
        (drop(), APIConnectionError),
        (cut(reply({"text": "Hello"}), 5), APIConnectionError),
        (lambda connection: False, APIConnectionError),
        (*storm(1), RateLimitError),
    ],
)
async def test_each_fault_is_its_error(server, ask, kit, handler, expected):
    server.script(handler)
    with pytest.raises(expected):
        await kit.settle(ask(max_retries=0).generate("Hi"))


async def test_a_storm_passes_and_its_retry_after_is_heeded(server, ask, kit):
    server.script(*storm(2), answer("at last"))
    assert (await kit.settle(ask(max_retries=2).generate("Hi"))).text == "at last"
    server.assert_script_done()
    server.script(*storm(3, retry_after_s=7))
    with pytest.raises(RateLimitError) as caught:
        await kit.settle(ask(max_retries=0).generate("Hi"))
    assert caught.value.retry_after == 7
    with pytest.raises(AssertionError, match="only 1 of 3 scripted requests came"):
        server.assert_script_done()


async def test_a_stream_cut_anywhere_is_truncated_and_slow_bytes_are_whole(server, ask, kit):
    client = ask(max_retries=0)
    server.script(slowly(answer("two words"), pause_s=0, num_bytes=3))
    assert await kit.collect(client.generate_stream("Hi")) == ["two", " words"]
    for num_bytes in (1, 60, 150):
        server.script(cut(answer("two words"), num_bytes))
        with pytest.raises(StreamTruncatedError):
            await kit.collect(client.generate_stream("Hi"))


async def test_keep_alives_are_understood_in_both_forms(server, ask, kit):
    server.script(keep_alives(answer("Hello"), times=3))
    client = ask()
    assert (await kit.settle(client.generate("Hi"))).text == "Hello"
    assert await kit.collect(client.generate_stream("Hi")) == ["Hello"]


async def test_silence_ends_with_the_client(server, ask, kit):
    server.script(silence())
    with pytest.raises(APITimeoutError):
        await kit.settle(ask(timeout=Timeout(first_token_s=0.3), max_retries=0).generate("Hi"))
    await kit.until(server.disconnected.is_set)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_recording_replays_byte_for_byte_and_holds_no_secret(tmp_path, is_stream):
    file = tmp_path / "recording.jsonl"

    def call(server, prompt="Hi, I am Ada 世界"):
        with DeepSeek(base_url=server.url, api_key=KEY, max_retries=0) as client:
            if is_stream:
                return list(client.generate_stream(prompt))
            return client.generate(prompt).text

    def redact(text):
        return text.replace("Ada", "N.N.")

    leaky = slowly(answer(f"Your key is {KEY}, 世界"), pause_s=0, num_bytes=7)
    with FakeServer(answer("A 世界"), leaky, error(429)) as real:
        with FakeServer(record(file, real.url, redact=redact)) as recorder:
            first, second = call(recorder), call(recorder, "again")
            with pytest.raises(RateLimitError):
                call(recorder, "thrice")
        assert real.requests[0].headers["authorization"] == f"Bearer {KEY}"
    kept = file.read_text()
    assert KEY not in kept
    assert "Ada" not in kept
    with FakeServer(replay(file, redact=redact)) as replayed:
        assert call(replayed) == first == call(replayed)
        assert "".join(call(replayed, "again")) == "".join(second).replace(KEY, "[redacted]")
        with pytest.raises(RateLimitError):
            call(replayed, "thrice")
        with pytest.raises(APIStatusError, match="has no POST /v1/generate"):
            call(replayed, "something else")


def test_the_fixture_is_where_the_settings_point(deepseek_server):  # noqa: F811
    deepseek_server.script(models("a", "b"))
    with DeepSeek() as client:
        assert [model.id for model in client.models.list().data] == ["a", "b"]
    assert deepseek_server.request.headers["authorization"] == "Bearer sk-test"
    with DeepSeek() as client:
        client.models.list()
    with pytest.raises(AssertionError, match="there came GET /v1/models, GET /v1/models"):
        _ = deepseek_server.request


def test_raw_bytes_need_a_socket(server, kit):
    server.script(lambda connection: connection.send(b"HTTP/1.1 200 X\r\ncontent-length: 1000\r\n\r\n"))
    with pytest.raises(Exception, match="no socket"), DeepSeek(transport=server.transport(), max_retries=0) as client:
        client.generate("Hi")
