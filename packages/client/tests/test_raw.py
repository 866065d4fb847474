"""`with_raw_response` and `with_streaming_response`: an answer's status, headers and bytes beside its value."""

import json
import threading

import pytest

from deepseek_client import AuthenticationError, ResponseValidationError, StreamTruncatedError
from deepseek_client.client import AsyncDeepSeek, DeepSeek
from deepseek_client.resources import account, chat, completions


async def test_a_raw_answer_has_status_headers_id_retries_and_time(server, connect, kit):
    server.script(kit.reply({}, 503, retry_after="0"), kit.reply(kit.CHAT, x_ds_trace_id="t-1", x_quota="7"))
    completions = connect().chat.completions
    raw = await kit.settle(completions.with_raw_response.create(messages=kit.MESSAGES, model="m"))
    assert (raw.status_code, raw.headers["x-quota"], raw.request_id, raw.retries_taken) == (200, "7", "t-1", 1)
    assert 0 < raw.elapsed.total_seconds() < 60
    assert raw.json() == json.loads(raw.text) == json.loads(raw.content) == kit.CHAT
    assert raw.parse() == await kit.settle(completions.create(messages=kit.MESSAGES, model="m"))


async def test_a_raw_stream_is_parsed_to_a_stream(server, connect, kit):
    server.script(kit.events(kit.chat_event("Hello", "stop"), x_request_id="r-1"))
    raw = await kit.settle(
        connect().chat.completions.with_raw_response.create(messages=kit.MESSAGES, model="m", stream=True)
    )
    assert (raw.status_code, raw.request_id, raw.content) == (200, "r-1", b"")
    assert [chunk.choices[0].delta.content for chunk in await kit.collect(raw.parse())] == ["Hello"]


async def test_a_body_that_cannot_be_parsed_is_there_to_look_at(server, connect, kit):
    server.script(kit.reply(b"<html>"))
    raw = await kit.settle(connect().with_raw_response.generate("Hi"))
    assert raw.content == b"<html>"
    with pytest.raises(ResponseValidationError):
        raw.parse()


async def test_a_refusal_is_raised_as_ever(server, connect, kit):
    server.script(kit.reply({"error": {"message": "no"}}, 401))
    with pytest.raises(AuthenticationError):
        await kit.settle(connect().models.with_raw_response.list())
    with pytest.raises(AuthenticationError):
        async with kit.entered(connect().models.with_streaming_response.list()):
            pass


async def lines_of(kit, response):
    return await kit.collect(response.iter_lines())


async def test_a_streaming_answer_is_read_as_it_is_asked_for(server, connect, kit):
    def slow(connection):
        connection.head(content_type="application/json", x_request_id="r-1")
        body = json.dumps(kit.CHAT).encode()
        connection.chunk(body[:10])
        entered.wait(10)
        connection.chunk(body[10:] + b"\r\nmore")
        connection.send(b"0\r\n\r\n")

    entered = threading.Event()
    server.script(kit.reply({}, 503, retry_after="0"), slow)
    call = connect().chat.completions.with_streaming_response.create(messages=kit.MESSAGES, model="m")
    assert server.requests == []
    async with kit.entered(call) as response:
        assert (response.status_code, response.request_id, response.retries_taken) == (200, "r-1", 1)
        entered.set()
        assert await lines_of(kit, response) == [json.dumps(kit.CHAT), "more"]


@pytest.mark.parametrize("reading", ["read", "parse"])
async def test_a_streaming_answer_may_be_read_whole_or_parsed(server, connect, kit, reading):
    server.script(kit.reply(kit.CHAT))
    async with kit.entered(
        connect().chat.completions.with_streaming_response.create(messages=kit.MESSAGES, model="m")
    ) as response:
        got = await kit.settle(getattr(response, reading)())
    assert (json.loads(got) if reading == "read" else got.to_wire()) == kit.CHAT


async def test_a_streaming_answer_of_events_gives_bytes_or_the_stream(server, connect, kit):
    server.script(kit.events(kit.chat_event("Hello", "stop")))
    create = connect().chat.completions.with_streaming_response.create
    async with kit.entered(create(messages=kit.MESSAGES, model="m", stream=True)) as response:
        assert (await lines_of(kit, response))[-2] == "data: [DONE]"
    async with kit.entered(create(messages=kit.MESSAGES, model="m", stream=True)) as response:
        stream = await kit.settle(response.parse())
        assert [chunk.choices[0].delta.content for chunk in await kit.collect(stream)] == ["Hello"]


async def test_leaving_a_streaming_answer_early_disconnects(server, connect, kit):
    def endless(connection):
        connection.head(content_type="application/json")
        connection.chunk(b"{")
        connection.until_closed()

    server.script(endless)
    async with kit.entered(connect().models.with_streaming_response.list()) as response:
        assert await kit.take(response.iter_bytes()) == b"{"
    await kit.until(server.disconnected.is_set)


async def test_the_lookup_of_a_model_is_not_the_answer(server, connect, kit):
    refusal = {"error": {"message": "you must provide a model parameter"}}
    handlers = [kit.reply(refusal, 400), kit.reply({"data": [{"id": "m"}]}), kit.reply(kit.CHAT)]
    server.script(*handlers)
    raw = await kit.settle(connect(profile="openai").with_raw_response.generate("Hi"))
    assert raw.json() == kit.CHAT
    server.requests.clear()
    async with kit.entered(connect(profile="openai").with_streaming_response.generate("Hi")) as response:
        assert json.loads(await kit.settle(response.read())) == kit.CHAT


async def test_a_stream_of_a_raw_answer_breaks_as_any_other(server, connect, kit):
    server.script(kit.events(kit.chat_event("Hel"), done=False))
    client = connect(max_retries=0)
    raw = await kit.settle(
        client.chat.completions.with_raw_response.create(messages=kit.MESSAGES, model="m", stream=True)
    )
    with pytest.raises(StreamTruncatedError):
        await kit.collect(raw.parse())


RESOURCES = [
    chat.ChatCompletions,
    completions.Completions,
    completions.Fim,
    account.Models,
    completions.Responses,
    account.Files,
    account.Tokens,
    account.WebTools,
    account.User,
    chat.AsyncChatCompletions,
    completions.AsyncCompletions,
    completions.AsyncFim,
    account.AsyncModels,
    completions.AsyncResponses,
    account.AsyncFiles,
    account.AsyncTokens,
    account.AsyncWebTools,
    account.AsyncUser,
]
GIVES_NO_ANSWER = {
    (account.Files, "list"),
    (account.AsyncFiles, "list"),
    (account.Tokens, "estimate"),
    (account.AsyncTokens, "estimate"),
}
"""Iterators, which ask later, and what asks nobody."""


@pytest.mark.parametrize("cls", RESOURCES)
def test_every_call_of_a_resource_is_there_raw(cls):
    resource = cls(None, None)
    calls = {
        name
        for name in vars(cls)
        if not name.startswith(("_", "with_")) and (cls, name) not in GIVES_NO_ANSWER and name != "stream"
    }
    assert vars(resource.with_raw_response).keys() == calls
    assert vars(resource.with_streaming_response).keys() == calls


def test_the_client_s_own_call_is_there_raw():
    for client in (DeepSeek(), AsyncDeepSeek()):
        assert vars(client.with_raw_response).keys() == vars(client.with_streaming_response).keys() == {"generate"}
