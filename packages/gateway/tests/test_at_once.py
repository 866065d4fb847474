"""Events that are sent on as they come, without waking the request's task, beside those that the task sends."""

import asyncio
from typing import Any

import pytest

from deepseek_gateway.edge.sender import Wire
from deepseek_gateway.relay import stream
from deepseek_gateway.relay.frames import FrameSplitter
from deepseek_gateway.relay.usage_tap import UsageTap, UsageWish
from deepseek_gateway.testing.caller import next_event, until
from deepseek_gateway.testing.stack import Stack
from deepseek_gateway.upstream.connection import Answer, EngineConnection

CHAT = {"messages": [{"role": "user", "content": "a b c"}], "stream": True}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was sent on at once."""
    seen: list[bytes] = []
    write = Wire.write_part

    def write_part(self: Wire, data: bytes) -> bool:
        seen.append(data)
        return write(self, data)

    monkeypatch.setattr(Wire, "write_part", write_part)
    return seen


async def words(stack: Stack, path: str, body: dict[str, Any], number: int) -> list[str]:
    """The events of a stream whose words come one by one."""
    events: list[str] = []
    stack.engine.allow()
    async with stack.caller.open(path, {**body, "fake": {"tokens": number, "gated": True}}) as answer:
        while not events or events[-1] != "data: [DONE]":
            events.append(await next_event(answer))
            stack.engine.allow()
    return events


async def test_events_that_come_one_by_one_do_not_wake_the_task(stack: Stack, parts: list[bytes]) -> None:
    events = await words(stack, "/v1/generate", {"prompt": "a", "stream": True}, 5)
    # The first is the task's; the last may come together with the end.
    assert [f"{event}\n\n".encode() for event in events[1:4]] == parts[:3]
    row = await stack.row()
    assert (row.status, row.accuracy, row.completion_tokens) == ("finished", "exact", 5)


@pytest.mark.parametrize("options", [{}, {"include_usage": True}, {"continuous_usage_stats": True}])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/generate", {"prompt": "a", "stream": True})]
)
async def test_both_ways_send_the_same(
    stack: Stack,
    parts: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
    options: dict[str, Any],
) -> None:
    wished = {**body, "stream_options": options}
    at_once = await words(stack, path, wished, 4)
    assert parts
    monkeypatch.setattr(stream, "wire_of", lambda _: None)  # the task's way only
    number = len(parts)
    by_task = await words(stack, path, wished, 4)
    assert len(parts) == number
    assert [_timeless(event) for event in at_once] == [_timeless(event) for event in by_task]


async def test_a_recording_gets_every_event_and_no_caller_twice(stack: Stack, parts: list[bytes]) -> None:
    headers = {"idempotency-key": "k1"}
    body = {"prompt": "a", "stream": True, "fake": {"tokens": 4, "delay_s": 0.001}}
    first = await stack.caller.post(body=body, headers=headers)
    again = await stack.caller.post(body=body, headers=headers)
    assert first.body == again.body
    assert not parts


async def test_a_stream_ends_where_its_limit_does(stack: Stack) -> None:
    caller = stack.with_key(tokens_per_minute=60)
    body = {"prompt": "a", "stream": True, "fake": {"tokens": 200, "delay_s": 0.0005}}
    reply = await caller.post(body=body)
    assert "event: error" in reply.body.decode()
    row = await stack.row()
    assert row.end_reason == "limit_tokens_per_minute"
    assert row.prompt_tokens + row.completion_tokens <= 60


async def test_a_caller_that_leaves_between_two_events_is_billed_what_came(stack: Stack, parts: list[bytes]) -> None:
    stack.engine.allow()
    async with stack.caller.open(
        "/v1/generate", {"prompt": "a", "stream": True, "fake": {"tokens": 50, "gated": True}}
    ) as answer:
        for _ in range(3):
            await next_event(answer)
            stack.engine.allow()
        answer.close()
    await until(lambda: not stack.engine.running)
    row = await stack.row()
    assert (row.status, row.end_reason, row.accuracy) == ("cancelled", "client_disconnect", "exact")
    assert parts


@pytest.mark.parametrize(
    "event",
    [
        b"data: [DONE]\n\n",
        b": comment\n\n",
        b"\n\n",
        b"event: error\ndata: {}\n\n",
        b'data: {"error":{"message":"x"}}\n\n',
        b'data: {"a":1}\ndata: {"b":2}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    ],
)
def test_what_only_the_task_can_judge_is_left_to_it(event: bytes) -> None:
    assert UsageTap(UsageWish()).look(event) is None


@pytest.mark.parametrize("data", [b"data: {}\n", b"data: {}\n\ndata: {}\n\n", b"\n\n", b"data: {}\r\n\r\n", b""])
def test_bytes_that_are_not_one_event_are_left_as_they_are(data: bytes) -> None:
    splitter = FrameSplitter(1000)
    assert splitter.whole(data) is None
    assert b"".join(splitter.feed(data + b"\n\ndata: end\n\n")).endswith(b"data: end\n\n")


def test_the_rest_of_an_event_is_no_event() -> None:
    splitter = FrameSplitter(1000)
    assert splitter.feed(b"data: ") == []
    assert splitter.whole(b"{}\n\n") is None
    assert splitter.feed(b"{}\n\n") == [b"data: {}\n\n"]


async def test_a_reader_gets_what_the_taker_leaves_in_order() -> None:
    connection = EngineConnection(asyncio.get_running_loop(), lambda _: None, lambda _: None)
    answer, taken = Answer(connection), list[bytes]()

    def taker(data: bytes) -> bool:
        if data in {b"2", b"34"}:
            return False
        taken.append(data)
        return True

    answer.taker = taker
    reading = asyncio.create_task(answer.read())
    await asyncio.sleep(0)
    for piece in (b"1", b"2"):
        answer.add(piece)
        answer.came()
    assert await reading == b"2"
    answer.add(b"3")
    answer.add(b"4")
    answer.came()
    assert await answer.read() == b"34"
    answer.add(b"5")  # nobody waits for it
    answer.came()
    assert not answer.offer(b"6")  # nor may it overtake
    assert await answer.read() == b"5"
    reading = asyncio.create_task(answer.read())
    await asyncio.sleep(0)
    assert answer.offer(b"7")
    answer.add(b"8")
    answer.is_whole = True
    answer.came()
    assert await reading == b""
    assert taken == [b"1", b"7", b"8"]


async def test_a_reader_that_was_cancelled_is_no_reader() -> None:
    connection = EngineConnection(asyncio.get_running_loop(), lambda _: None, lambda _: None)
    answer = Answer(connection)
    answer.taker = lambda _: True
    reading = asyncio.create_task(answer.read())
    await asyncio.sleep(0)
    reading.cancel()
    assert not answer.offer(b"1")
    await asyncio.gather(reading, return_exceptions=True)
    assert not answer.offer(b"1")


def _timeless(event: str) -> str:
    """An event without its stream's id and moment."""
    return ",".join(part for part in event.split(",") if '"id"' not in part and '"created"' not in part)
