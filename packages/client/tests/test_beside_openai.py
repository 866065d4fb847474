"""What is claimed to be better than openai-python, each beside it on the same server; and where both do well.

A test here that fails because openai-python has learnt the better way is a claim to take out of docs/client.md.
"""

import asyncio
import gc
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deepseek_client import AsyncDeepSeek, DeepSeek, Timeout, errors
from deepseek_client.sse import DONE, KEEP_ALIVE, encode_event

openai = pytest.importorskip("openai", reason="openai-python is not installed: nothing to compare with")

KEY = "dsk_test_secretsecret1234"
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def theirs(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def ours(server):
    with DeepSeek(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def patient(monkeypatch):
    """However slow the machine is: the end of a body is waited for."""
    monkeypatch.setattr("deepseek_client.stream_core.DRAIN_S", 30.0)


def chunks_of(client):
    return list(client.chat.completions.create(messages=MESSAGES, model="m", stream=True))


def text_of(chunks):
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices or ())


def create(client):
    return client.chat.completions.create(messages=MESSAGES, model="m")


def chunk(kit, *args, **fields):
    return encode_event(json.dumps(kit.chat_event(*args, **fields)))


# ---- streams


def test_a_stream_that_was_cut_is_a_whole_answer_there_and_an_error_with_its_text_here(server, theirs, ours, kit):
    server.script(kit.events(kit.chat_event("Hel"), b'data: {"id": "chat-1", "cho', done=False))
    assert text_of(chunks_of(theirs)) == "Hel"
    with pytest.raises(errors.StreamTruncatedError) as caught:
        chunks_of(ours)
    assert caught.value.partial_text == "Hel"


@pytest.mark.parametrize(
    ("event", "what"),
    [
        (b'data: {"object": "error", "message": "busy", "code": 429}\n\n', "sglang and vllm"),
        (b'event: error\ndata: {"message": "busy", "code": 429}\n\n', "a named event"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_flat_error_in_a_stream_is_no_error_there_and_its_class_here(server, theirs, ours, kit, event, what):
    server.script(kit.events(kit.chat_event("Hel"), event, done=False))
    assert text_of(chunks_of(theirs)) == "Hel"
    with pytest.raises(errors.RateLimitError, match="busy"):
        chunks_of(ours)


def test_a_nested_error_in_a_stream_has_no_class_there_and_its_class_here(server, theirs, ours, kit):
    server.script(kit.events(kit.chat_event("Hel"), {"error": {"message": "busy", "code": 429}}, done=False))
    with pytest.raises(openai.APIError) as caught:
        chunks_of(theirs)
    assert not isinstance(caught.value, openai.APIStatusError)
    with pytest.raises(errors.RateLimitError, match="busy") as ours_caught:
        chunks_of(ours)
    assert ours_caught.value.partial_text == "Hel"


def test_a_byte_order_mark_loses_the_first_event_there_and_nothing_here(server, theirs, ours, kit):
    server.script(kit.events(b"\xef\xbb\xbf" + chunk(kit, "Hel"), kit.chat_event("lo", "stop")))
    assert text_of(chunks_of(theirs)) == "lo"
    assert text_of(chunks_of(ours)) == "Hello"


@pytest.mark.parametrize("event", [b"retry: 100\n\n", b"id: 7\n\n", b"data:\n\n"])
def test_an_event_without_data_breaks_a_stream_there_and_is_ignored_here(server, theirs, ours, kit, event):
    server.script(kit.events(event, kit.chat_event("Hello", "stop")))
    with pytest.raises(json.JSONDecodeError):
        chunks_of(theirs)
    assert text_of(chunks_of(ours)) == "Hello"


def test_bytes_that_are_no_text_raise_python_s_error_there_and_ours_here(server, theirs, ours, kit):
    server.script(kit.events(kit.chat_event("Hel"), b"data: \xff\n\n"))
    with pytest.raises(UnicodeDecodeError):
        chunks_of(theirs)
    with pytest.raises(errors.StreamProtocolError) as caught:
        chunks_of(ours)
    assert caught.value.partial_text == "Hel"


def test_a_page_in_place_of_a_stream_is_an_empty_success_there_and_shown_here(server, theirs, ours, kit):
    server.script(kit.reply(b"<html>Sign in</html>", content_type="text/html"))
    assert chunks_of(theirs) == []
    with pytest.raises(errors.StreamProtocolError, match="Sign in"):
        chunks_of(ours)


def test_keep_alives_hide_a_stuck_server_there_and_not_here(server, theirs, ours, kit):
    """There `timeout` is of each read, so that comments put it off: no limit on silence, none on the whole call."""

    def stuck(times):
        def handler(connection):
            connection.head()
            connection.chunk(chunk(kit, "Hel"))
            for _ in range(times):
                connection.chunk(KEEP_ALIVE)
                time.sleep(0.01)
            connection.chunk(chunk(kit, "lo", "stop") + DONE)
            connection.end()

        return handler

    server.script(stuck(130))
    assert text_of(chunks_of(theirs.with_options(timeout=1.0))) == "Hello"  # after 1.3 s of nothing
    server.script(stuck(10_000))
    for timeout, cls in ((Timeout(idle_s=0.2), errors.IdleTimeout), (0.2, errors.DeadlineExceeded)):
        with pytest.raises(cls) as caught:
            chunks_of(ours.with_options(timeout=timeout))
        assert caught.value.partial_text == "Hel"


def late_end(kit):
    """The end of the body comes in a packet of its own, after `[DONE]`, as servers in the field send it."""

    def handler(connection):
        connection.head()
        connection.chunk(chunk(kit, "Hello", "stop"))
        connection.chunk(DONE)
        time.sleep(0.002)
        connection.end()

    return handler


def test_twenty_streams_take_twenty_connections_there_and_one_here(server, theirs, ours, kit, patient):
    server.script(late_end(kit))
    for _ in range(20):
        assert text_of(chunks_of(theirs)) == "Hello"
    before = server.num_connections
    for _ in range(20):
        assert text_of(chunks_of(ours)) == "Hello"
    assert (before, server.num_connections - before) == (20, 1)


# ---- answers and errors


def test_a_blank_answer_is_a_json_error_there_and_tried_again_here(server, theirs, ours, kit):
    server.script(kit.reply(b"\n\n\n", x_ds_trace_id="trace-1"))
    with pytest.raises(json.JSONDecodeError):
        create(theirs)
    with pytest.raises(errors.EmptyResponseError) as caught:
        create(ours)
    assert caught.value.request_id == "trace-1"
    server.script(kit.reply(b"\n\n\n"), kit.reply(kit.CHAT))
    assert create(ours.with_options(max_retries=1)).choices[0].message.content == "Hello"


def test_a_402_has_no_class_and_no_id_there_and_both_here(server, theirs, ours, kit):
    body = {"error": {"message": "Insufficient Balance", "type": "unknown_error", "code": "invalid_request_error"}}
    server.script(kit.reply(body, 402, x_ds_trace_id="trace-1"))
    with pytest.raises(openai.APIStatusError) as caught:
        create(theirs)
    assert (type(caught.value), caught.value.request_id) == (openai.APIStatusError, None)
    with pytest.raises(errors.InsufficientBalanceError) as ours_caught:
        create(ours)
    assert ours_caught.value.request_id == "trace-1"


def test_an_answer_without_choices_is_accepted_there_and_refused_here(server, theirs, ours, kit):
    server.script(kit.reply({"id": "x", "object": "chat.completion"}))
    assert create(theirs).choices is None
    with pytest.raises(errors.ResponseValidationError, match="choices"):
        create(ours)


def test_an_error_with_status_200_is_an_answer_there_and_an_error_here(server, theirs, ours, kit):
    server.script(kit.reply({"object": "error", "message": "out of memory", "code": 503}))
    assert create(theirs).choices is None
    with pytest.raises(errors.OverloadedError, match="out of memory"):
        create(ours)


def test_errors_do_not_pickle_there_and_do_here(server, theirs, ours, kit):
    server.script(kit.reply({"error": {"message": "slow down"}}, 429))
    with pytest.raises(openai.RateLimitError) as caught:
        create(theirs)
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(caught.value))
    with pytest.raises(errors.RateLimitError) as ours_caught:
        create(ours)
    again = pickle.loads(pickle.dumps(ours_caught.value))
    assert (str(again), again.status_code, again.headers) == (
        str(ours_caught.value),
        429,
        ours_caught.value.headers,
    )
    with pytest.raises(TypeError):
        pickle.dumps(theirs)
    assert repr(pickle.loads(pickle.dumps(ours))) == repr(ours)


# ---- retries


def test_the_timeout_is_of_each_attempt_there_and_of_the_call_here(server, theirs, ours, kit, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    server.script(kit.reply({"error": {"message": "busy"}}, 429, retry_after="30"))
    with pytest.raises(openai.RateLimitError):
        create(theirs.with_options(max_retries=2, timeout=5.0))
    assert sum(slept) == pytest.approx(60)
    slept.clear()
    with pytest.raises(errors.RateLimitError) as caught:
        create(ours.with_options(max_retries=2, timeout=5.0))
    assert (slept, caught.value.retry_after, caught.value.retries_taken) == ([], 30.0, 0)


def test_a_failing_server_is_stormed_there_and_not_here(server, theirs, ours, kit, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    server.script(kit.reply({"error": {"message": "busy"}}, 503))
    for client, cls, most in ((theirs, openai.InternalServerError, 120), (ours, errors.OverloadedError, 50)):
        before = len(server.requests)
        client = client.with_options(max_retries=2)

        def fail(_number, client=client, cls=cls):
            with pytest.raises(cls):
                create(client)

        with ThreadPoolExecutor(8) as executor:
            list(executor.map(fail, range(40)))
        assert len(server.requests) - before == most


# ---- the life of a client


@pytest.mark.filterwarnings("ignore")
def test_a_client_over_two_event_loops_fails_there_and_works_here(server, kit):
    server.script(kit.reply(kit.CHAT))

    async def ask(client):
        return (await create(client)).choices[0].message.content

    def fails_there():
        theirs = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
        assert asyncio.run(ask(theirs)) == "Hello"
        with pytest.raises((openai.APIConnectionError, RuntimeError)):
            asyncio.run(ask(theirs))

    fails_there()
    gc.collect()  # its sockets are still open: they complain here, where it is ignored
    ours = AsyncDeepSeek(base_url=server.url, api_key=KEY, max_retries=0)
    assert [asyncio.run(ask(ours)) for _ in range(2)] == ["Hello", "Hello"]


# ---- reasoning


def test_vllm_s_reasoning_has_another_name_there_and_one_name_here(server, theirs, ours, kit):
    server.script(kit.events(kit.chat_event(None, reasoning="2+2"), kit.chat_event("4", "stop")))
    assert not hasattr(chunks_of(theirs)[0].choices[0].delta, "reasoning_content")
    assert chunks_of(ours)[0].choices[0].delta.reasoning_content == "2+2"


# ---- both do well: no claim


def test_both_read_odd_but_sound_streams(server, theirs, ours, kit):
    plain = chunk(kit, "Hé\u2028llo", "a new reason")
    crlf = plain.replace(b"\n", b"\r\n") + b"data: [DONE]\r\n\r\n"

    def byte_by_byte(connection):
        connection.head()
        for byte in KEEP_ALIVE + crlf:
            connection.chunk(bytes([byte]))
        connection.end()

    server.script(byte_by_byte)
    for client in (theirs, ours):
        assert text_of(chunks_of(client)) == "Hé\u2028llo"


def test_both_read_an_answer_behind_blank_lines(server, theirs, ours, kit):
    server.script(kit.reply(b"\n\n\n" + json.dumps(kit.CHAT).encode()))
    for client in (theirs, ours):
        assert create(client).choices[0].message.content == "Hello"


async def test_both_use_connections_again_for_async_streams(server, kit, patient):
    server.script(late_end(kit))
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as theirs,
        AsyncDeepSeek(base_url=server.url, api_key=KEY) as ours,
    ):
        counts = []
        for client in (theirs, ours):
            before = server.num_connections
            for _ in range(20):
                stream = await client.chat.completions.create(messages=MESSAGES, model="m", stream=True)
                assert text_of([piece async for piece in stream]) == "Hello"
            counts.append(server.num_connections - before)
    assert counts[0] < 20  # it waits for the end a moment, which a busy machine may outlast
    assert counts[1] == 1


def test_both_send_reasoning_back_when_a_whole_message_is_sent(server, theirs, ours, kit):
    """In a loop of the caller's own; `run_tools` does it by itself, and openai-python has none for chat."""
    said = {"role": "assistant", "content": "", "reasoning_content": "2+2"}
    server.script(kit.reply(kit.CHAT | {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}))
    for client in (theirs, ours):
        message = create(client).choices[0].message
        client.chat.completions.create(messages=[*MESSAGES, message], model="m")
        assert server.requests[-1].json["messages"][-1]["reasoning_content"] == "2+2"
    assert not hasattr(theirs.chat.completions, "run_tools")
