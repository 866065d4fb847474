"""Retries with an Idempotency-Key get the first request's answer; broken streams go on. One engine call, one bill."""

import asyncio
import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from deepseek_gateway.testing.caller import Caller, Reply, next_event, until
from deepseek_gateway.testing.stack import Stack, running_stack

TURN = {"messages": [{"role": "user", "content": "a b c"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/generate": {"prompt": "a b c"},
    "/v1/completions": {"prompt": "a b c"},
    "/v1/chat/completions": TURN,
    "/v1/messages": {**TURN, "max_tokens": 50},
    "/v1/responses": {"input": "a b c"},
}
ONCE = {"idempotency-key": "order-17"}
STREAM: dict[str, Any] = {"prompt": "a b c", "stream": True}


def ids(reply: Reply) -> list[int]:
    """The numbers of a stream's events."""
    return [int(event.split("\n")[0].rpartition(":")[2]) for event in reply.events]


async def one_row(stack: Stack) -> Any:
    row = await stack.row()
    assert len(await stack.running.rows(1)) == 1
    return row


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_a_retry_gets_the_same_answer_and_costs_nothing(stack: Stack, path: str, stream: bool) -> None:
    body = {**BODIES[path], "stream": stream}
    first = await stack.caller.post(path, body, headers=ONCE)
    again = await stack.caller.post(path, body, headers=ONCE)
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-replay-of"] == first.headers["x-request-id"] != again.headers["x-request-id"]
    assert "x-replay-of" not in first.headers
    assert len(stack.engine.bodies) == 1
    row = await one_row(stack)
    assert (row.request_id, row.completion_tokens) == (first.headers["x-request-id"], stack.engine.truth.completion)
    if stream:
        assert ids(first) == list(range(len(first.events)))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_joins_the_answer_that_is_being_made(stack: Stack, stream: bool) -> None:
    body = {"prompt": "a", "stream": stream, "fake": {"tokens": 4, "gated": True}}
    asking = [asyncio.create_task(stack.caller.post(body=body, headers=ONCE)) for _ in range(3)]
    await stack.engine.until_running()
    stack.engine.allow(2)
    asking.append(asyncio.create_task(stack.caller.post(body=body, headers=ONCE)))
    stack.engine.allow(2)
    replies = await asyncio.gather(*asking)
    assert {reply.body for reply in replies} == {replies[0].body}
    assert "w4" in replies[0].body.decode()
    assert len(stack.engine.bodies) == 1
    assert (await one_row(stack)).completion_tokens == 4
    meters = stack.gateway.metrics.exposition(0, 0).decode()
    assert 'deepseek_gateway_replayed_requests_total{kind="running"} 3.0' in meters


async def test_a_key_that_is_taken_is_refused_for_another_request(stack: Stack) -> None:
    await stack.caller.post(body={"prompt": "a"}, headers=ONCE)
    for path, body in (("/v1/generate", {"prompt": "b"}), ("/v1/completions", {"prompt": "a"})):
        reply = await stack.caller.post(path, body, headers=ONCE)
        assert (reply.status, reply.error["code"]) == (422, "idempotency_key_reused")
        assert reply.error["param"] == "Idempotency-Key"
    assert len(stack.engine.bodies) == 1


async def test_callers_with_another_key_never_meet(stack: Stack) -> None:
    first = await stack.caller.post(body=STREAM, headers=ONCE)
    other = await stack.with_key().post(body=STREAM, headers=ONCE)
    assert "x-replay-of" not in other.headers
    assert len(stack.engine.bodies) == 2
    last = f"{first.headers['x-request-id']}:1"
    reply = await stack.with_key().post(body=STREAM, headers={"last-event-id": last})
    assert (reply.status, reply.error["code"]) == (404, "stream_not_found")


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "ümlaut"])
async def test_a_malformed_key_is_refused(stack: Stack, key: str) -> None:
    reply = await stack.caller.post(body={"prompt": "a"}, headers={"idempotency-key": key})
    assert (reply.status, reply.error["param"]) == (400, "Idempotency-Key")
    assert stack.engine.bodies == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fake", [{"status": 422}, {"status": 500}, {"cut_after": 2}])
async def test_a_failure_is_not_kept_so_that_a_retry_tries_again(stack: Stack, stream: bool, fake: Any) -> None:
    body = {"prompt": "a", "stream": stream, "fake": fake}
    for tries in (1, 2):
        reply = await stack.caller.post(body=body, headers=ONCE)
        assert reply.status >= 400 or b"event: error" in reply.body
        await until(lambda: stack.gateway.running == 0)
        assert len(stack.engine.bodies) == tries or fake == {"status": 500}
        await until(lambda: stack.gateway.pool.is_up)
    assert len(stack.gateway.replays) == 0


async def test_refusals_before_admission_come_as_they_are(stack: Stack) -> None:
    limited = stack.with_key(requests_per_minute=1)
    assert (await limited.post(body=STREAM, headers=ONCE)).status == 200
    reply = await limited.post(body=STREAM, headers={"idempotency-key": "another"})
    assert (reply.status, reply.error["code"]) == (429, "requests_per_minute")
    assert reply.headers["retry-after"]
    assert (await limited.post(body=STREAM, headers=ONCE)).status == 200  # the first's answer needs no room


async def leave_after(stack: Stack, words: int, headers: dict[str, str], **fake: Any) -> str:
    """Begin a gated stream and leave it after some words; gives the last event's id."""
    body = {**STREAM, "fake": {"tokens": 6, "gated": True, **fake}}
    stack.engine.allow(words)
    async with stack.caller.open("/v1/generate", body, headers=headers) as answer:
        event = ""
        while f'"w{words}' not in event:  # a request's id may hold these letters
            event = await next_event(answer)
        answer.close()
    return event.split("\n")[0].removeprefix("id: ")


@pytest.mark.parametrize("headers", [ONCE, {"x-resumable": "true"}])
@pytest.mark.parametrize("with_body", [True, False])
async def test_a_broken_stream_goes_on_after_the_last_event(stack: Stack, headers, with_body: bool) -> None:
    last = await leave_after(stack, 3, headers)
    stack.engine.allow(3)
    body: Any = {**STREAM, "fake": {"tokens": 6, "gated": True}} if with_body else b""
    reply = await stack.caller.post(body=body, headers={"last-event-id": last})
    assert reply.status == 200
    assert ids(reply) == list(range(int(last.rpartition(":")[2]) + 1, ids(reply)[-1] + 1))
    text = [json.loads(event.partition("data: ")[2])["text"][:2] for event in reply.events[:-1]]
    assert text == ["w4", "w5", "w6", ""]
    assert reply.events[-1].endswith("data: [DONE]")
    row = await one_row(stack)
    assert (row.status, row.completion_tokens, row.accuracy) == ("finished", 6, "exact")
    assert len(stack.engine.bodies) == 1
    again = await stack.caller.post(body=body, headers={"last-event-id": last})  # it is finished, and still kept
    assert again.body == reply.body


async def test_a_retry_after_a_disconnect_gets_all_of_the_one_answer(stack: Stack) -> None:
    await leave_after(stack, 2, ONCE)
    stack.engine.allow(4)
    reply = await stack.caller.post(body={**STREAM, "fake": {"tokens": 6, "gated": True}}, headers=ONCE)
    assert [f"w{number}" in reply.body.decode() for number in range(1, 7)] == [True] * 6
    assert (await one_row(stack)).completion_tokens == 6


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_nobody_comes_back_for_is_aborted_and_billed(state_dir: Path, stream: bool) -> None:
    async with running_stack(state_dir, resume_grace_s=0.05) as stack:
        if stream:
            await leave_after(stack, 2, ONCE)
        else:
            body = {"prompt": "a b c", "fake": {"tokens": 6, "gated": True}}
            stack.engine.allow(2)
            asking = asyncio.create_task(stack.caller.post(body=body, headers=ONCE))
            await until(lambda: any(job.num_sent == 2 for job in stack.engine.running.values()))
            asking.cancel()
        row = await one_row(stack)
        assert (row.status, row.end_reason, row.accuracy) == ("cancelled", "client_disconnect", "exact")
        assert row.completion_tokens == stack.engine.truth.completion == 2
        assert stack.engine.finished[0].finish == "abort"
        assert len(stack.gateway.replays) == 0


async def test_without_the_headers_a_disconnect_ends_the_request_at_once(stack: Stack) -> None:
    await leave_after_plain(stack)
    assert (await stack.row()).end_reason == "client_disconnect"


async def leave_after_plain(stack: Stack) -> None:
    stack.engine.allow()
    async with stack.caller.open("/v1/generate", {**STREAM, "fake": {"tokens": 6, "gated": True}}) as answer:
        assert "id:" not in await next_event(answer)
        answer.close()


@pytest.mark.parametrize(
    ("last", "status", "code"),
    [
        ("nonsense", 400, None),
        ("req-x:", 400, None),
        ("req-x:-1", 400, None),
        ("x" * 300 + ":1", 400, None),
        ("req-unknown:3", 404, "stream_not_found"),
        ("{}:900", 409, "replay_lost"),
    ],
)
async def test_a_resume_of_what_is_not_there_is_refused(stack: Stack, last: str, status: int, code: str | None) -> None:
    first = await stack.caller.post(body=STREAM, headers=ONCE)
    reply = await stack.caller.post(body=b"", headers={"last-event-id": last.format(first.headers["x-request-id"])})
    assert (reply.status, reply.error["code"]) == (status, code)


async def test_a_resume_with_another_body_is_refused(stack: Stack) -> None:
    first = await stack.caller.post(body=STREAM, headers=ONCE)
    last = {"last-event-id": f"{first.headers['x-request-id']}:2"}
    reply = await stack.caller.post(body={**STREAM, "prompt": "other"}, headers=last)
    assert (reply.status, reply.error["code"]) == (422, "resume_mismatch")


async def test_the_ring_bounds_what_is_kept_of_a_long_stream(state_dir: Path) -> None:
    async with running_stack(state_dir, replay_entry_bytes=256 * 1024) as stack:
        body = {**STREAM, "fake": {"tokens": 300, "word_bytes": 2000}}
        first = await stack.caller.post(body=body, headers=ONCE)
        assert len(first.body) > 600_000
        await until(lambda: stack.gateway.running == 0)
        assert stack.gateway.replays.size < 300 * 1024
        again = await stack.caller.post(body=body, headers=ONCE)
        assert (again.status, again.error["code"]) == (409, "replay_lost")
        request_id = first.headers["x-request-id"]
        late = await stack.caller.post(body=b"", headers={"last-event-id": f"{request_id}:290"})
        assert ids(late) == list(range(291, ids(first)[-1] + 1))
        early = await stack.caller.post(body=b"", headers={"last-event-id": f"{request_id}:5"})
        assert early.status == 409
        assert len(stack.engine.bodies) == 1


async def test_a_whole_answer_that_is_too_large_is_sent_once(state_dir: Path) -> None:
    async with running_stack(state_dir, replay_entry_bytes=256 * 1024) as stack:
        body = {"prompt": "a", "fake": {"tokens": 200, "word_bytes": 2000}}
        first = await stack.caller.post(body=body, headers=ONCE)
        assert len(first.json["text"]) == 400_000
        await until(lambda: stack.gateway.running == 0)
        assert stack.gateway.replays.size < 10_000
        assert (await stack.caller.post(body=body, headers=ONCE)).error["code"] == "replay_lost"
        assert len(stack.engine.bodies) == 1


async def test_a_caller_that_does_not_read_holds_the_engine_back_here_too(state_dir: Path) -> None:
    async with running_stack(state_dir, resume_grace_s=0.05) as stack:
        body = {**STREAM, "fake": {"tokens": 3000, "word_bytes": 20_000}}
        async with stack.caller.open("/v1/generate", body, headers=ONCE) as answer:
            answer.connection.transport.pause_reading()
            await stack.engine.until_running()
            (job,) = stack.engine.running.values()
            seen = -1
            while job.num_sent != seen:  # until it stands still
                seen = job.num_sent
                await asyncio.sleep(0.1)
            assert 0 < job.num_sent < 1500
            answer.close()
        assert (await stack.row()).accuracy == "exact"


async def test_a_follower_hears_that_the_gateway_stops(state_dir: Path) -> None:
    async with running_stack(state_dir, drain_timeout_s=0) as stack:
        body = {**STREAM, "fake": {"tokens": 6, "gated": True}}
        stack.engine.allow()
        async with stack.caller.open("/v1/generate", body, headers=ONCE) as answer:
            assert "w1" in await next_event(answer)
            await stack.gateway.drain()
            rest = (await answer.read()).decode()
        assert "event: error" in rest
        assert "the gateway stops" in rest
        assert (await stack.row()).end_reason == "shutdown"


async def test_silences_carry_signs_of_life_that_are_not_kept(state_dir: Path) -> None:
    async with running_stack(state_dir, keep_alive_s=0.1) as stack:
        body = {**TURN, "max_tokens": 9, "stream": True, "fake": {"tokens": 2, "gated": True}}
        stack.engine.allow()
        async with stack.caller.open("/v1/messages", body, headers=ONCE) as answer:
            while "event: ping" not in await next_event(answer):
                pass
            stack.engine.allow()
            await answer.read()
        again = await stack.caller.post("/v1/messages", body, headers=ONCE)
        assert "ping" not in again.body.decode()
        assert ids(again) == list(range(len(again.events)))


async def test_the_real_clients_read_numbered_streams_and_replays(stack: Stack) -> None:
    url, key = stack.running.url, stack.caller.key
    texts: list[str] = []
    async with openai.AsyncOpenAI(api_key=key, base_url=url) as client:
        for _ in range(2):
            chat: Any = {**TURN, "model": "fake-model", "extra_headers": ONCE}
            stream = await client.chat.completions.create(**chat, stream=True)
            texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
            response = await client.responses.create(
                model="fake-model", input="a", extra_headers={"idempotency-key": "r"}
            )
            assert response.output_text.startswith("w1")
    async with anthropic.AsyncAnthropic(api_key=key, base_url=url) as client:
        for _ in range(2):
            ask: Any = {**TURN, "model": "fake-model", "max_tokens": 50, "extra_headers": {"idempotency-key": "m"}}
            async with client.messages.stream(**ask) as stream:
                texts.append((await stream.get_final_message()).content[0].text)
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert len(stack.engine.bodies) == 3


async def test_500_callers_of_20_keys_cost_20_requests(stack: Stack) -> None:
    async def ask(number: int) -> bytes:
        caller: Caller = stack.caller
        body = {"prompt": f"p{number % 20}", "stream": True, "fake": {"tokens": 5}}
        return (await caller.post(body=body, headers={"idempotency-key": f"k{number % 20}"})).body

    bodies = await asyncio.gather(*(ask(number) for number in range(500)))
    for group in range(20):
        assert len({bodies[number] for number in range(group, 500, 20)}) == 1
    assert len(stack.engine.bodies) == 20
    await until(lambda: stack.gateway.running == 0)
    rows = await stack.running.rows(20)
    assert len(rows) == 20
    assert sum(row.completion_tokens for row in rows) == stack.engine.truth.completion == 100
