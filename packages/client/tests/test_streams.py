"""Streams over a real socket: what arrives, when it counts as whole, and what happens to the connection."""

import asyncio
import gc
import json
import pickle
import time

import pytest

from deepseek_client import AsyncDeepSeek, errors
from deepseek_client.settings import Timeout
from deepseek_client.sse import DONE, KEEP_ALIVE, encode_event


async def open_chat(client, kit, **params):
    return await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, stream=True, **params))


async def test_generate_stream_gives_strings_and_the_rest_afterwards(server, connect, kit):
    chunks = [kit.text_event("Hel"), kit.text_event("lo"), kit.text_event("", "stop", usage=kit.USAGE)]
    server.script(kit.events(*chunks, x_request_id="req-1"))
    async with kit.entered(connect().generate_stream("Hi", temperature=0.0)) as stream:
        assert await kit.collect(stream) == ["Hel", "lo"]
    assert (stream.usage.total_tokens, stream.finish_reason, stream.request_id) == (5, "stop", "req-1")
    assert str(stream.generation) == "Hello"
    assert stream.generation.usage == stream.usage
    assert server.requests[0].json == {"prompt": "Hi", "max_tokens": 512, "stream": True, "temperature": 0.0}


async def test_generate_stream_needs_no_with(server, connect, kit):
    server.script(kit.events(kit.text_event("Hello", "stop")))
    assert await kit.collect(connect().generate_stream("Hi")) == ["Hello"]


async def test_generate_stream_falls_back_to_chat(server, connect, kit):
    usage = {"id": "chat-1", "choices": [], "usage": kit.USAGE}
    chunks = [kit.chat_event("", role="assistant"), kit.chat_event("Hel"), kit.chat_event("lo", "length"), usage]
    server.script(kit.reply({"detail": "Not Found"}, 404), kit.events(*chunks))
    async with kit.entered(connect().generate_stream("Hi", model="m")) as stream:
        assert await kit.collect(stream) == ["Hel", "lo"]
    assert (stream.usage.total_tokens, stream.finish_reason, str(stream.generation)) == (5, "length", "Hello")
    assert server.requests[1].json["stream_options"] == {"include_usage": True}


async def test_chat_chunks_are_typed_and_add_up(server, connect, kit):
    def call(index, **function):
        return {"index": index, "function": function} | ({"id": f"c{index}"} if "name" in function else {})

    chunks = [
        kit.chat_event("", role="assistant"),
        kit.chat_event(None, reasoning_content="2+2"),
        kit.chat_event(None, reasoning=" is 4"),
        kit.chat_event("4"),
        kit.chat_event(None, tool_calls=[call(0, name="f", arguments='{"a"')]),
        kit.chat_event(None, tool_calls=[call(0, arguments=":1}"), call(1, name="g", arguments="{}")]),
        kit.chat_event(None, "tool_calls") | {"usage": kit.USAGE, "system_fingerprint": "fp"},
    ]
    server.script(kit.events(*chunks))
    async with kit.entered(await open_chat(connect(), kit, model="m")) as stream:
        received = await kit.collect(stream)
    assert received[0].model_dump(exclude_unset=True) == chunks[0]
    assert received[-1].model_extra == {"system_fingerprint": "fp"}
    message = stream.snapshot.choices[0].message
    assert (message.role, message.content, message.reasoning_content) == ("assistant", "4", "2+2 is 4")
    assert [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls] == [
        ("c0", "f", '{"a":1}'),
        ("c1", "g", "{}"),
    ]
    assert (stream.finish_reason, stream.usage.total_tokens, stream.snapshot.model) == ("tool_calls", 5, "m")


async def test_completion_chunks_add_up_for_each_choice(server, connect, kit):
    def piece(index, text, finish_reason=None):
        return {"id": "c", "choices": [{"index": index, "text": text, "finish_reason": finish_reason}]}

    server.script(kit.events(piece(0, "a"), piece(1, "x"), piece(0, "b", "stop"), piece(1, "y", "length"), done=False))
    stream = await kit.settle(connect().completions.create(prompt=["p", "q"], stream=True))
    answer = await kit.settle(stream.until_done())
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [("ab", "stop"), ("xy", "length")]


@pytest.mark.parametrize("done", [True, False])
async def test_one_of_done_and_finish_reason_is_enough(server, connect, kit, done):
    server.script(kit.events(kit.text_event("Hello", None if done else "stop"), done=done))
    assert await kit.collect(connect().generate_stream("Hi")) == ["Hello"]


async def test_with_n_2_one_finish_reason_is_not_enough(server, connect, kit):
    server.script(kit.events(kit.chat_event("a", "stop", 0), kit.chat_event("b", None, 1), done=False))
    stream = await open_chat(connect(max_retries=0), kit, n=2)
    with pytest.raises(errors.StreamTruncatedError):
        await kit.collect(stream)


async def test_a_stream_cut_anywhere_is_never_a_success(server, connect, kit):
    body = encode_event(json.dumps(kit.text_event("Hé"))) + encode_event(json.dumps(kit.text_event("llo")))
    cuts = range(0, len(body) + 1, 3)
    client = connect(max_retries=0)
    for cut in cuts:
        for is_clean in (True, False):

            def handler(connection, cut=cut, is_clean=is_clean):
                connection.head()
                if cut:
                    connection.chunk(body[:cut])
                if is_clean:
                    connection.send(b"0\r\n\r\n")
                return is_clean

            server.script(handler)
            seen = []
            stream = client.generate_stream("Hi")
            expected = errors.EmptyResponseError if is_clean and cut == 0 else errors.StreamTruncatedError
            if is_clean and 0 < cut < len("data:"):
                expected = errors.StreamError
            with pytest.raises(expected) as caught:
                await kit.collect_into(seen, stream)
            assert caught.value.partial_text == "".join(seen)


async def test_a_truncated_stream_carries_its_text_and_pickles_with_it(server, connect, kit):
    server.script(kit.events(kit.chat_event("Hel"), kit.chat_event("lo"), done=False, x_request_id="req-9"))
    stream = await open_chat(connect(), kit)
    with pytest.raises(errors.StreamTruncatedError) as caught:
        await kit.collect(stream)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.partial_text, error.snapshot.id, error.request_id) == ("Hello", "chat-1", "req-9")
    assert "no [DONE]" in str(error)
    assert "req-9" in str(error)
    assert len(server.requests) == 1


async def test_a_stream_that_breaks_before_its_first_token_starts_again(server, connect, kit):
    def broken(connection):
        connection.head()
        connection.chunk(KEEP_ALIVE)
        return False

    refusal = encode_event('{"error": {"message": "busy", "type": "overloaded_error"}}', event="error")
    server.script(broken, kit.events(refusal, done=False), kit.events(kit.text_event("Hello", "stop")))
    assert await kit.collect(connect().generate_stream("Hi")) == ["Hello"]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("event", "expected", "message"),
    [
        (
            b'event: error\ndata: {"error": {"message": "m", "type": "overloaded_error"}}\n\n',
            errors.OverloadedError,
            "m",
        ),
        (b'event: error\ndata: {"message": "m", "code": "402"}\n\n', errors.InsufficientBalanceError, "m"),
        (b"event: error\ndata: it broke\n\n", errors.InternalServerError, "it broke"),
        (b'data: {"error": {"message": "m", "code": 429}}\n\n', errors.RateLimitError, "m"),
        (b'data: {"object": "error", "message": "m", "code": 400}\n\n', errors.BadRequestError, "m"),
        (b'data: {"id": "x", "text": "", "error": {"code": 502, "message": "m"}}\n\n', errors.InternalServerError, "m"),
        (b'data: {"tex": "no id"}\n\n', errors.ResponseValidationError, "id: Field required"),
        (b"data: Hello\n\n", errors.ResponseValidationError, "begins: Hello"),
        (b"data: \xff\n\n", errors.StreamProtocolError, "not UTF-8"),
    ],
)
async def test_an_error_inside_a_stream_is_of_its_class_and_keeps_the_text(
    server, connect, kit, event, expected, message
):
    first = encode_event(json.dumps(kit.text_event("Hel")))
    server.script(kit.events(first + event, x_request_id="req-2"))
    stream = connect().generate_stream("Hi")
    assert await kit.take(stream) == "Hel"
    with pytest.raises(expected, match=message) as caught:
        await kit.take(stream)
    assert (caught.value.partial_text, caught.value.request_id) == ("Hel", "req-2")
    assert await kit.collect(stream) == []


async def test_a_page_instead_of_a_stream_is_shown(server, connect, kit):
    page = b"<html><body>Welcome to nginx!</body></html>"
    server.script(kit.reply(page, content_type="text/html"), kit.reply(page, content_type="text/plain"))
    with pytest.raises(errors.StreamProtocolError, match="got text/html: <html><body>Welcome"):
        await open_chat(connect(), kit)
    with pytest.raises(errors.StreamProtocolError, match="got text/plain: <html>"):
        await kit.collect(await open_chat(connect(), kit))


async def test_a_refusal_of_a_stream_is_raised_where_it_is_opened(server, connect, kit):
    body = {"error": {"message": "prompt has 9000 tokens", "code": "context_length_exceeded", "type": "t"}}
    server.script(kit.reply(body, 400, x_request_id="r"))
    with pytest.raises(errors.ContextLengthError, match="9000 tokens") as caught:
        await open_chat(connect(), kit)
    assert caught.value.request_id == "r"


async def test_byte_order_marks_blank_events_and_metadata_do_no_harm(server, connect, kit):
    stream = b"\xef\xbb\xbf" + encode_event(json.dumps(kit.text_event("Hello", "stop")))
    server.script(kit.events(stream, b"id: 3\n\n", b"retry: 10\n\n", b"data:\n\n", KEEP_ALIVE))
    assert await kit.collect(connect().generate_stream("Hi")) == ["Hello"]


async def test_bytes_that_come_one_by_one_give_the_same_text(server, connect, kit):
    def slowly(connection):
        connection.head()
        for byte in encode_event(json.dumps(kit.text_event("Héllo", "stop"), ensure_ascii=False)) + DONE:
            connection.chunk(bytes([byte]))
        connection.send(b"0\r\n\r\n")

    server.script(slowly)
    assert await kit.collect(connect().generate_stream("Hi")) == ["Héllo"]


async def test_twenty_streams_use_one_connection(server, connect, kit):
    def late_end(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.text_event("Hello", "stop"))))
        connection.chunk(DONE)
        time.sleep(0.002)  # the end of the body comes in a packet of its own
        connection.send(b"0\r\n\r\n")

    server.script(late_end)
    client = connect()
    for _ in range(20):
        assert await kit.collect(client.generate_stream("Hi")) == ["Hello"]
    assert (len(server.requests), server.num_connections) == (20, 1)


async def test_a_server_that_never_ends_the_body_after_done_costs_only_a_moment(server, connect, kit):
    def endless(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.text_event("Hello", "stop"))))
        connection.chunk(DONE)
        connection.until_closed()

    server.script(endless)
    began = time.monotonic()
    assert await kit.collect(connect().generate_stream("Hi")) == ["Hello"]
    assert time.monotonic() - began < 20
    await kit.until(server.disconnected.is_set)


@pytest.mark.parametrize("pieces_read", [0, 1])
async def test_leaving_early_disconnects_at_the_server(server, connect, kit, pieces_read):
    def endless(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.text_event("Hello"))))
        connection.until_closed()

    server.script(endless)
    async with kit.entered(connect().generate_stream("Hi")) as stream:
        for _ in range(pieces_read):
            await kit.take(stream)
    await kit.until(server.disconnected.is_set)
    assert await kit.collect(stream) == []


async def test_a_forgotten_stream_disconnects_too(server, connect, kit):
    def endless(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.chat_event("Hello"))))
        connection.until_closed()

    server.script(endless)
    stream = await open_chat(connect(), kit)
    await kit.take(stream)
    del stream
    gc.collect()
    await kit.until(server.disconnected.is_set)


async def test_closing_from_elsewhere_ends_a_read_that_waits(server, connect, kit):
    def endless(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.text_event("Hel"))))
        connection.until_closed()

    server.script(endless)
    stream = connect().generate_stream("Hi")
    assert await kit.take(stream) == "Hel"
    if hasattr(stream, "__anext__"):
        reader = asyncio.create_task(kit.collect(stream))
        await asyncio.sleep(0)
    else:
        reader = asyncio.create_task(asyncio.to_thread(list, stream))
        await kit.until(lambda: stream._core.body._is_reading)
    await kit.settle(stream.close())
    assert await asyncio.wait_for(reader, 10) == []
    await kit.until(server.disconnected.is_set)


async def test_a_cancelled_task_disconnects_before_the_first_token(server, kit):
    server.script(lambda connection: connection.until_closed())
    async with AsyncDeepSeek(base_url=server.url) as client:
        task = asyncio.create_task(kit.collect(client.generate_stream("Hi")))
        await kit.until(lambda: len(server.requests) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await kit.until(server.disconnected.is_set)


async def test_keep_alives_do_not_reset_the_idle_limit(server, connect, kit):
    def stuck(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.text_event("Hel"))))
        while True:
            connection.chunk(KEEP_ALIVE)
            time.sleep(0.02)

    server.script(stuck)
    stream = connect(timeout=Timeout(idle_s=0.2)).generate_stream("Hi")
    assert await kit.take(stream) == "Hel"
    with pytest.raises(errors.APITimeoutError) as caught:
        await kit.take(stream)
    assert (caught.value.phase, caught.value.partial_text) == ("idle", "Hel")


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_the_first_token_has_a_limit_of_its_own(server, connect, kit, keep_alive):
    def stuck(connection):
        connection.head()
        while keep_alive:
            connection.chunk(KEEP_ALIVE)
            time.sleep(0.02)
        connection.until_closed()

    server.script(stuck)
    with pytest.raises(errors.APITimeoutError) as caught:
        await kit.collect(connect(timeout=Timeout(first_token_s=0.2)).generate_stream("Hi"))
    assert caught.value.phase == "first_token"
    await kit.until(lambda: server.requests)
    assert len(server.requests) == 1


async def test_silence_after_the_first_token_meets_the_idle_limit_and_not_the_longer_first_one(server, connect, kit):
    def silent(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.text_event("Hel"))))
        connection.until_closed()

    server.script(silent)
    began = time.monotonic()
    with pytest.raises(errors.APITimeoutError) as caught:
        await kit.collect(connect(timeout=Timeout(first_token_s=100, idle_s=0.2)).generate_stream("Hi"))
    assert caught.value.phase == "idle"
    assert time.monotonic() - began < 50


async def test_a_slow_reader_is_not_a_silent_server(server, connect, kit):
    server.script(kit.events(kit.text_event("Hel"), kit.text_event("lo", "stop")))
    stream = connect(timeout=Timeout(first_token_s=100, idle_s=1.0)).generate_stream("Hi")
    assert await kit.take(stream) == "Hel"
    await asyncio.sleep(1.1)  # longer than the limit: the time under test
    assert await kit.collect(stream) == ["lo"]
