"""`chat.completions.stream`: typed events over a real socket, and what can be asked of the stream besides."""

import asyncio
import json
import threading

import pytest

from deepseek_client import errors, events
from deepseek_client.sse import KEEP_ALIVE, encode_event


def call(index, arguments, **function):
    return {"index": index, "function": {"arguments": arguments} | function} | ({"id": f"c{index}"} if function else {})


@pytest.fixture
def thinking(kit):
    """An answer with everything: reasoning under both of its names, text, two tool calls, usage after the finish."""
    return [
        kit.chat_event("", role="assistant", reasoning_content=""),
        kit.chat_event(None, reasoning_content="2+2"),
        kit.chat_event(None, reasoning=" is 4"),
        kit.chat_event("It "),
        kit.chat_event("is 4."),
        kit.chat_event(None, tool_calls=[call(0, '{"a"', name="f")]),
        kit.chat_event(None, tool_calls=[call(0, ":1}"), call(1, "{}", name="g")]),
        kit.chat_event(None, "tool_calls"),
        {"id": "chat-1", "choices": [], "usage": kit.USAGE},
    ]


async def test_each_part_of_an_answer_is_an_event_and_is_done_once(server, connect, kit, thinking):
    server.script(kit.events(*thinking))
    async with kit.entered(connect().chat.completions.stream(messages=kit.MESSAGES, model="m")) as stream:
        seen = await kit.collect(stream)
    assert [event.type for event in seen] == [
        *("reasoning.delta", "reasoning.delta", "reasoning.done", "content.delta", "content.delta", "content.done"),
        *("tool_call.delta", "tool_call.delta", "tool_call.done", "tool_call.delta", "tool_call.done"),
        *("finish", "usage"),
    ]
    assert seen[2] == events.ReasoningDone("2+2 is 4")
    assert seen[5] == events.ContentDone("It is 4.")
    assert seen[7] == events.ToolCallDelta(0, "c0", "f", ":1}")
    assert (seen[8].tool_call.function.name, seen[8].tool_call.function.arguments) == ("f", '{"a":1}')
    assert seen[11] == events.Finish("tool_calls")
    assert seen[12].usage == stream.usage
    assert seen[3].chunk.model_dump(exclude_unset=True) == thinking[3]
    assert server.requests[0].json["stream_options"] == {"include_usage": True}


async def test_events_of_several_choices_are_told_apart(server, connect, kit):
    chunks = [kit.chat_event("a", None, 0), kit.chat_event("x", None, 1), kit.chat_event("b", "stop", 0)]
    server.script(kit.events(*chunks, kit.chat_event(None, "length", 1)))
    stream = connect().chat.completions.stream(messages=kit.MESSAGES, n=2)
    done = [event for event in await kit.collect(stream) if event.type == "content.done"]
    assert [(event.index, event.text) for event in done] == [(0, "ab"), (1, "x")]


async def test_without_a_finish_reason_the_parts_are_done_at_the_end(server, connect, kit):
    server.script(kit.events(kit.chat_event("Hello")))
    seen = await kit.collect(connect().chat.completions.stream(messages=kit.MESSAGES))
    assert seen == [events.ContentDelta("Hello"), events.ContentDone("Hello")]


async def test_reasoning_can_be_read_first_and_the_text_after_it(server, connect, kit, thinking):
    server.script(kit.events(*thinking))
    stream = connect().chat.completions.stream(messages=kit.MESSAGES)
    assert await kit.collect(stream.reasoning_stream) == ["2+2", " is 4"]
    assert await kit.take(stream.text_stream) == "It "
    assert stream.snapshot.choices[0].message.content == "It "
    assert await kit.collect(stream.text_stream) == ["is 4."]
    assert await kit.settle(stream.get_final_text()) == "It is 4."


async def test_the_final_completion_is_what_a_plain_call_gives(server, connect, kit, thinking):
    server.script(kit.events(*thinking))
    completion = await kit.settle(connect().chat.completions.stream(messages=kit.MESSAGES).get_final_completion())
    message = completion.choices[0].message
    assert (message.content, message.reasoning_content, len(message.tool_calls)) == ("It is 4.", "2+2 is 4", 2)
    assert (completion.choices[0].finish_reason, completion.usage.total_tokens) == ("tool_calls", 5)


async def test_keep_alives_are_events_for_those_who_ask_and_never_a_part_of_the_answer(server, connect, kit):
    def broken(connection):
        connection.head()
        connection.chunk(KEEP_ALIVE)
        return False

    good = kit.events(KEEP_ALIVE, kit.chat_event("Hello", "stop"))
    server.script(broken, good, good)
    client = connect()
    seen = await kit.collect(client.chat.completions.stream(messages=kit.MESSAGES, keep_alives=True))
    assert [event.type for event in seen] == ["keep_alive", "keep_alive", "content.delta", "content.done", "finish"]
    assert seen[0] == events.KeepAlive("keep-alive")
    seen = await kit.collect(client.chat.completions.stream(messages=kit.MESSAGES))
    assert [event.type for event in seen] == ["content.delta", "content.done", "finish"]


async def test_cancel_stops_the_server_and_gives_what_has_arrived(server, connect, kit):
    def endless(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.chat_event("Hel"))))
        connection.until_closed()

    server.script(endless)
    stream = connect().chat.completions.stream(messages=kit.MESSAGES)
    assert (await kit.take(stream)).text == "Hel"
    partial = await kit.settle(stream.cancel())
    assert partial.choices[0].message.content == "Hel"
    await kit.until(server.disconnected.is_set)
    with pytest.raises(errors.StreamClosedError) as caught:
        await kit.settle(stream.get_final_text())
    assert caught.value.partial_text == "Hel"


async def test_a_broken_stream_never_gives_a_final_completion(server, connect, kit):
    server.script(kit.events(kit.chat_event("Hel"), done=False))
    stream = connect().chat.completions.stream(messages=kit.MESSAGES)
    for _ in range(2):
        with pytest.raises(errors.StreamTruncatedError) as caught:
            await kit.settle(stream.get_final_completion())
        assert caught.value.partial_text == "Hel"


async def test_a_stream_without_events_does_nothing_before_it_is_entered(server, connect, kit):
    server.script(kit.reply({"error": {"message": "no"}}, 401))
    stream = connect().chat.completions.stream(messages=kit.MESSAGES)
    assert server.requests == []
    with pytest.raises(errors.AuthenticationError):
        async with kit.entered(stream):
            pass


async def read_all(branches, kit):
    """Each branch in a thread or task of its own."""
    if hasattr(branches[0], "__aiter__"):
        return await asyncio.gather(*map(kit.collect, branches))
    return await asyncio.gather(*(asyncio.to_thread(list, branch) for branch in branches))


async def test_tee_gives_every_reader_every_event_through_a_small_buffer(server, connect, kit):
    chunks = [kit.chat_event(f"{number},") for number in range(50)]
    server.script(kit.events(*chunks, kit.chat_event(None, "stop")))
    stream = connect().chat.completions.stream(messages=kit.MESSAGES)
    first, second, third = await read_all(stream.tee(3, buffer=2), kit)
    assert first == second == third
    assert len(first) == 52


async def test_tee_tells_every_reader_how_the_stream_broke(server, connect, kit):
    server.script(kit.events(kit.chat_event("Hel"), done=False))
    for branch in connect().chat.completions.stream(messages=kit.MESSAGES).tee(2):
        seen = []
        with pytest.raises(errors.StreamTruncatedError):
            await kit.collect_into(seen, branch)
        assert seen == [events.ContentDelta("Hel")]


async def test_tee_raises_where_waiting_would_never_end(server, connect, kit):
    server.script(kit.events(*(kit.chat_event("x") for _ in range(9))))
    ahead, behind = connect().chat.completions.stream(messages=kit.MESSAGES).tee(buffer=4)
    with pytest.raises(errors.StreamError, match="buffer=4"):
        await kit.collect(ahead)
    assert len([await kit.take(behind) for _ in range(4)]) == 4


async def test_tee_does_not_wait_for_a_reader_that_is_gone(server, connect, kit):
    server.script(kit.events(*(kit.chat_event("x") for _ in range(9))))
    branches = list(connect().chat.completions.stream(messages=kit.MESSAGES).tee(buffer=4))
    del branches[1]
    assert len(await kit.collect(branches[0])) == 10


async def test_a_snapshot_costs_nothing_while_nobody_asks(server, connect, kit, monkeypatch):
    from deepseek_client.readings import ChatReading

    built = []
    monkeypatch.setattr(ChatReading, "answer", lambda self: built.append(self))
    server.script(kit.events(kit.chat_event("a"), kit.chat_event("b", "stop")))
    await kit.collect(connect().chat.completions.stream(messages=kit.MESSAGES))
    assert built == []


def test_two_threads_may_share_a_stream_by_tee_while_a_third_cancels_it(server, kit):
    from deepseek_client import DeepSeek

    def endless(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.chat_event("Hel"))))
        connection.until_closed()

    server.script(endless)
    with DeepSeek(base_url=server.url) as client:
        stream = client.chat.completions.stream(messages=kit.MESSAGES)
        branches = stream.tee(2)
        assert [next(branch).text for branch in branches] == ["Hel", "Hel"]
        readers = [threading.Thread(target=list, args=(branch,)) for branch in branches]
        for reader in readers:
            reader.start()
        stream.cancel()
        for reader in readers:
            reader.join(10)
            assert not reader.is_alive()
