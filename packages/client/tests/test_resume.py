"""`resume=True`: streams that break go on, by event numbers or from their text, or say why not."""

import json

import pytest

from deepseek_client import Usage, errors
from deepseek_client.events import ContentDone
from deepseek_client.settings import Timeout
from deepseek_client.sse import DONE, KEEP_ALIVE, encode_event
from deepseek_client.testing import chat_chunk, completion, text_chunk

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
SAID = ["One", " two", " thr", "ee."]
TEXT = "".join(SAID)
GENERATION = [*map(text_chunk, SAID), text_chunk("", "stop", usage=USAGE)]
TRAILER = {**chat_chunk(None), "choices": [], "usage": USAGE}
CHAT = [chat_chunk("", role="assistant"), *map(chat_chunk, SAID), chat_chunk(None, "stop"), TRAILER]
THOUGHT = [chat_chunk(None, reasoning_content="Hm"), *CHAT[1:]]
COMPLETION = [*(completion(word, None) for word in SAID), completion("", "stop", usage=USAGE)]
RESPONSE = [
    *({"type": "response.output_text.delta", "delta": word, "output_index": 0} for word in SAID),
    {"type": "response.completed", "response": {"id": "r", "status": "completed", "usage": {"input_tokens": 3}}},
]


class Gateway:
    """A server that numbers the events of one stream, keeps them, and cuts each answer after so many."""

    def __init__(self, chunks, cuts, is_clean=True):
        self.events = [encode_event(json.dumps(chunk), id=f"req-1:{n}") for n, chunk in enumerate(chunks)]
        self.events.append(encode_event("[DONE]", id=f"req-1:{len(chunks)}"))
        self.cuts = list(cuts)
        self.is_clean = is_clean

    def __call__(self, connection):
        last = connection.request.headers.get("last-event-id")
        first = int(last.removeprefix("req-1:")) + 1 if last is not None else 0
        return send(connection, self.events[first:], self.cuts.pop(0) if self.cuts else None, is_clean=self.is_clean)


def send(connection, events, cut, *, is_clean=True):
    """Send events, all or the first ones; the body then ends as if it were whole, or in the middle of a chunk."""
    connection.head(x_request_id="req-1" if "last-event-id" not in connection.request.headers else "req-2")
    connection.chunk(KEEP_ALIVE)
    for event in events[:cut]:
        connection.chunk(event)
    if cut is None or is_clean:
        connection.end()
        return True
    connection.send(b"ff\r\n" + b"".join(events[cut : cut + 1])[:9])
    return False


def part(*chunks, cut=False):
    """A stream without numbers; one that is cut ends before [DONE]."""
    events = [chunk if isinstance(chunk, bytes) else encode_event(json.dumps(chunk)) for chunk in chunks]
    return lambda connection: send(connection, [*events] if cut else [*events, DONE], None)


def eager(client):
    """The client, with waits of no time."""
    client._core.exchange._chance = lambda: 0.0
    return client


CALLS = {
    "generate": (lambda client, kit, **params: client.generate_stream("Hi", **params), GENERATION),
    "stream": (lambda client, kit, **params: client.chat.completions.stream(messages=kit.MESSAGES, **params), CHAT),
    "chat": (
        lambda client, kit, **params: client.chat.completions.create(messages=kit.MESSAGES, stream=True, **params),
        CHAT,
    ),
    "completion": (
        lambda client, kit, **params: client.completions.create(prompt="Hi", stream=True, **params),
        COMPLETION,
    ),
    "response": (lambda client, kit, **params: client.responses.create(input="Hi", stream=True, **params), RESPONSE),
}


async def whole(server, client, kit, call, chunks):
    """What a call gives without a break."""
    server.script(Gateway(chunks, []))
    stream = await kit.settle(call(client, kit))
    return await kit.collect(stream), stream.snapshot


@pytest.mark.parametrize("is_clean", [True, False])
@pytest.mark.parametrize("name", CALLS)
async def test_a_numbered_stream_goes_on_wherever_it_is_cut(server, connect, kit, name, is_clean):
    call, chunks = CALLS[name]
    told = []
    client = eager(connect(resume=True, on_retry=told.append, default_model="m"))
    items, answer = await whole(server, client, kit, call, chunks)
    for cut in range(1, len(chunks) + 1):
        told.clear()
        server.requests.clear()
        server.script(Gateway(chunks, [cut], is_clean))
        stream = await kit.settle(call(client, kit))
        read = await kit.collect(stream)
        assert (stream.snapshot, stream.request_id) == (answer, "req-1")
        assert read == items
        first, *again = server.requests
        if cut == len(chunks):  # only [DONE] was lost
            assert again == []
            continue
        assert len(again) == 1
        assert (again[0].path, again[0].body) == (first.path, first.body)
        assert again[0].headers["idempotency-key"] == first.headers["idempotency-key"]
        assert [(type(retry.error), retry.number) for retry in told] == [(errors.StreamTruncatedError, 1)]
        assert stream.retries_taken == 1
        if name == "stream" and cut == 1:  # nothing had been handed over: it begins again, under the same key
            assert "last-event-id" not in again[0].headers
        else:
            assert again[0].headers["last-event-id"] == f"req-1:{cut - 1}"
            assert [seam.how for seam in stream.seams] == ["replay"]


async def test_a_stream_goes_on_as_often_as_retries_are_left(server, connect, kit):
    server.script(Gateway(GENERATION, [1, 1, 1, 1]))
    client = eager(connect(resume=True, max_retries=4))
    stream = client.generate_stream("Hi")
    assert await kit.collect(stream) == SAID
    assert (stream.retries_taken, [seam.position for seam in stream.seams]) == (4, [3, 7, 11, 14])
    server.script(Gateway(GENERATION, [1, 1, 1, 1]))
    with pytest.raises(errors.StreamTruncatedError, match=r"no \[DONE\]") as caught:
        await kit.collect(client.with_options(max_retries=2).generate_stream("Hi"))
    assert (caught.value.partial_text, caught.value.retries_taken) == ("One two thr", 2)
    assert caught.value.__notes__ == ["not resumed: no retry is left, or no time"]


async def test_streams_are_not_resumed_unless_asked_for(server, connect, kit):
    server.script(Gateway(CHAT, [3]))
    client = eager(connect(resume=True))
    async with kit.entered(client.chat.completions.stream(messages=kit.MESSAGES, resume=False)) as stream:
        with pytest.raises(errors.StreamTruncatedError):
            await kit.collect(stream)
    server.script(Gateway(CHAT, [3]))
    with pytest.raises(errors.StreamTruncatedError):
        await kit.collect(eager(connect()).chat.completions.stream(messages=kit.MESSAGES))
    assert [request.headers.get("idempotency-key") for request in server.requests] == [None, None]
    assert "resume" not in server.requests[0].json
    server.script(Gateway(GENERATION, [3]))
    assert await kit.collect(eager(connect()).generate_stream("Hi", resume=True)) == SAID


async def test_a_silent_stream_is_asked_for_again_and_the_deadline_holds(server, connect, kit):
    def silent(connection):
        connection.head()
        for event in Gateway(GENERATION, []).events[:2]:
            connection.chunk(event)
        connection.until_closed()

    server.script(silent, Gateway(GENERATION, []))
    client = eager(connect(resume=True, max_retries=9, timeout=Timeout(idle_s=0.2)))
    stream = client.generate_stream("Hi")
    assert await kit.collect(stream) == SAID
    assert server.requests[1].headers["last-event-id"] == "req-1:1"
    server.script(silent)
    with pytest.raises(errors.DeadlineExceeded) as caught:
        await kit.collect(client.generate_stream("Hi", timeout=0.2))
    assert "One two".startswith(caught.value.partial_text)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (Gateway(GENERATION, []).events, None),  # all of them: what had come is passed over
        ([encode_event(json.dumps(chunk), id=f"req-9:{n}") for n, chunk in enumerate(GENERATION)], "sent another"),
        ([encode_event(json.dumps(chunk)) for chunk in GENERATION], "sent another"),
        (Gateway(GENERATION, []).events[3:], "sent another"),
    ],
)
async def test_a_server_that_does_not_go_on_where_it_was_asked_to_is_not_believed(server, connect, kit, events, reason):
    server.script(Gateway(GENERATION, [2]), lambda connection: send(connection, events, None))
    stream, read = eager(connect(resume=True)).generate_stream("Hi"), []
    if reason is None:
        assert await kit.collect(stream) == SAID
        return
    with pytest.raises(errors.StreamTruncatedError, match=reason) as caught:
        await kit.collect_into(read, stream)
    assert ("".join(read), caught.value.partial_text) == ("One two", "One two")
    assert "no server continues an answer of generate" in caught.value.__notes__[0]


@pytest.mark.parametrize("status", [404, 409, 422])
async def test_a_gateway_that_has_lost_the_stream_is_asked_to_go_on_from_the_text(server, connect, kit, status):
    lost = kit.reply({"error": {"message": "lost", "code": "replay_lost"}}, status)
    rest = part(CHAT[0], *CHAT[3:])
    server.script(Gateway(THOUGHT, [3]), lost, rest)
    stream = eager(connect(resume=True, profile="gateway")).chat.completions.stream(messages=kit.MESSAGES)
    events = await kit.collect(stream)
    message = stream.snapshot.choices[0].message
    assert (message.content, message.reasoning_content) == (TEXT, "Hm")
    assert [event.text for event in events if isinstance(event, ContentDone)] == [TEXT]
    first, _, again = server.requests
    continued = {"role": "assistant", "content": "One two", "reasoning_content": "Hm", "prefix": True}
    assert again.json == first.json | {"messages": [*kit.MESSAGES, continued]}
    assert again.headers["idempotency-key"] != first.headers["idempotency-key"]
    assert [(seam.how, seam.position, seam.request_id) for seam in stream.seams] == [("prefix", 7, "req-1")]
    assert stream.snapshot.seams == stream.seams


@pytest.mark.parametrize(
    ("profile", "path", "last", "more"),
    [
        ("deepseek", "/beta/chat/completions", {"prefix": True}, {}),
        ("openai", "/v1/chat/completions", {}, {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
async def test_elsewhere_a_chat_goes_on_from_its_text(server, connect, kit, profile, path, last, more):
    server.script(part(*CHAT[:3], chat_chunk(None) | {"usage": USAGE}, cut=True), part(*CHAT[3:], DONE))
    client = eager(connect(resume=True, profile=profile, default_model="m", prices=None))
    stream = client.chat.completions.stream(messages=kit.MESSAGES, max_tokens=9, seed=7, extra_headers={"x-a": "b"})
    await kit.collect(stream)
    assert (stream.snapshot.choices[0].message.content, stream.finish_reason) == (TEXT, "stop")
    assert stream.usage == stream.snapshot.usage == Usage(**USAGE).plus(Usage(**USAGE))
    assert (client.usage.requests, client.usage.completion_tokens) == (1, 8)
    first, again = server.requests
    turn = {"role": "assistant", "content": "One two", **last}
    assert again.json == first.json | {"messages": [*kit.MESSAGES, turn], "max_tokens": 5, **more}
    assert (again.path, again.headers["x-a"]) == (path, "b")
    assert "last-event-id" not in again.headers


async def test_a_completion_goes_on_from_its_text(server, connect, kit):
    server.script(part(*COMPLETION[:2], cut=True), part(*COMPLETION[2:]))
    completions = eager(connect(resume=True)).completions
    stream = await kit.settle(completions.create(prompt="Zero. ", stream=True, max_tokens=9))
    await kit.collect(stream)
    assert (stream.snapshot.choices[0].text, stream.finish_reason) == (TEXT, "stop")
    assert server.requests[1].json == server.requests[0].json | {"prompt": "Zero. One two", "max_tokens": 7}


@pytest.mark.parametrize("profile", ["deepseek", "openai"])
async def test_generate_goes_on_from_its_text_where_a_chat_answers_it(server, connect, kit, profile):
    server.script(part(*CHAT[:3], cut=True), part(*CHAT[3:]))
    stream = eager(connect(resume=True, profile=profile)).generate_stream("Hi", model="m")
    assert await kit.collect(stream) == SAID
    assert server.requests[1].json["messages"][1]["content"] == "One two"


async def test_a_server_that_gives_up_is_asked_to_go_on_and_a_refusal_is_not(server, connect, kit):
    busy = encode_event('{"error": {"message": "shutting down", "code": 503}}', event="error")
    wrong = encode_event('{"error": {"message": "no", "code": 400}}', event="error")
    server.script(part(*CHAT[:3], busy, cut=True), part(*CHAT[3:]), part(*CHAT[:3], wrong, cut=True))
    client = eager(connect(resume=True))
    assert (await kit.settle(client.chat.completions.stream(messages=kit.MESSAGES).get_final_text())) == TEXT
    with pytest.raises(errors.BadRequestError):
        await kit.collect(client.chat.completions.stream(messages=kit.MESSAGES))
    assert len(server.requests) == 3


CALLED = chat_chunk(None, tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}])
REASONED = [chat_chunk(None, reasoning_content="Hm"), *CHAT[1:3]]


@pytest.mark.parametrize(
    ("said", "params", "reason"),
    [
        (CHAT[:3], {"n": 2}, "several answers"),
        (CHAT[:3], {"response_format": {"type": "json_object"}}, "held to a format"),
        (CHAT[:3], {"extra_body": {"structured_outputs": {"regex": "a"}}}, "held to a format"),
        ([*CHAT[:3], CALLED], {}, "a tool call had begun"),
        (REASONED[:1], {}, "within the reasoning"),
        (REASONED, {}, "may not take reasoning back"),
        (CHAT[:3], {"max_tokens": 2}, "max_tokens may be used up"),
        (CHAT[:3], {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "O"}]}, "already"),
    ],
)
async def test_what_cannot_go_on_fails_as_ever_and_says_why(server, connect, kit, said, params, reason):
    server.script(part(*said, cut=True))
    client, read = eager(connect(resume=True, profile="openai", default_model="m")), []
    with pytest.raises(errors.StreamTruncatedError, match=r"no \[DONE\]") as caught:
        await kit.collect_into(read, client.chat.completions.stream(**{"messages": kit.MESSAGES, **params}))
    (note,) = caught.value.__notes__
    assert note.startswith("not resumed: ")
    assert reason in note
    assert caught.value.partial_text == ("One two" if len(said) > 1 else "")
    assert len(server.requests) == 1


@pytest.mark.parametrize("params", [{"prompt": [1, 2]}, {"prompt": "a", "echo": True}, {"prompt": "a", "logprobs": 0}])
async def test_completions_that_count_from_their_prompt_do_not_go_on(server, connect, kit, params):
    server.script(part(*COMPLETION[:2], cut=True))
    stream = await kit.settle(eager(connect(resume=True)).completions.create(stream=True, **params))
    with pytest.raises(errors.StreamTruncatedError):
        await kit.collect(stream)
    assert len(server.requests) == 1


async def test_a_server_that_cannot_be_reached_again_leaves_the_first_error(server, connect, kit):
    server.script(part(*CHAT[:3], cut=True), kit.reply({}, 401))
    with pytest.raises(errors.StreamTruncatedError, match=r"no \[DONE\]") as caught:
        await kit.collect(eager(connect(resume=True)).chat.completions.stream(messages=kit.MESSAGES))
    assert "401" in caught.value.__notes__[0]
    assert (caught.value.partial_text, caught.value.retries_taken) == ("One two", 1)
