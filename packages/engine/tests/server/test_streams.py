"""Streams as they run: each step's text at once, stop strings, failures, silence, and callers that leave."""

import asyncio
import json

import httpx
import pytest

from deepseek_engine.errors import EngineDeadError

CHAT, GENERATE, COMPLETIONS = "/v1/chat/completions", "/v1/generate", "/v1/completions"


async def test_each_step_reaches_the_caller_before_the_next_one_runs(scripted):
    server = await scripted()
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(_open_and_step(server))
        await server.eventually(lambda: len(server.engine.submits) == 1)
        server.engine.emit_text("one")
    assert opening.result() == ["one", " two", " three"]


async def _open_and_step(server) -> list[str]:
    async with server.stream(GENERATE, prompt="Hi") as reader:
        seen = [(await reader.next())["text"]]
        for text in (" two", " three"):
            server.engine.emit_text(text)
            seen.append((await reader.next())["text"])
        server.engine.emit_text("", finish_reason="length")
        assert (await reader.next())["finish_reason"] == "length"
        assert await reader.next() is None
    return seen


async def test_an_incomplete_character_is_held_until_it_is_whole(scripted, tokenizer):
    server = await scripted()
    ids = tokenizer.encode("世")
    assert len(ids) > 1
    async with server.begin(GENERATE, prompt="Hi") as (submit, opened):
        for token_id in ids:
            server.engine.emit(submit.request_id, (token_id,))
        server.engine.emit_text("!", finish_reason="length")
        async with opened as reader:
            events = await reader.rest()
    assert [event["text"] for event in events] == ["世", "!"]


async def test_with_continuous_usage_every_step_has_an_event_even_without_text(scripted, tokenizer):
    server = await scripted()
    ids = tokenizer.encode("世")
    options = {"continuous_usage_stats": True}
    async with server.begin(COMPLETIONS, prompt="Hi", stream_options=options) as (submit, opened):
        server.engine.emit(submit.request_id, (ids[0],))
        async with opened as reader:
            assert (await reader.next())["usage"]["completion_tokens"] == 1
            server.engine.emit(submit.request_id, tuple(ids[1:]), finish_reason="length")
            last = (await reader.rest())[-1]
    assert last["choices"][0]["text"] == "世"
    assert last["usage"]["completion_tokens"] == len(ids)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_stop_string_ends_the_answer_and_cancels_the_rest(scripted, tokenizer, is_stream):
    server = await scripted()
    async with server.begin(COMPLETIONS, is_stream, prompt="Hi", stop=["END"], return_token_ids=True) as (
        submit,
        opened,
    ):
        for token_id in tokenizer.encode("some text. END and more"):
            server.engine.emit(submit.request_id, (token_id,))
        async with opened as reader:
            choices = [e["choices"][0] for e in await reader.rest()] if is_stream else reader.json()["choices"]
    text = "".join(choice["text"] for choice in choices)
    ids = [token_id for choice in choices for token_id in choice["token_ids"]]
    assert text == "some text. "
    assert choices[-1]["finish_reason"] == "stop"
    assert tokenizer.decode(ids) == "some text. END"
    assert server.engine.cancels[0] == (submit.request_id, 0)
    await server.eventually(lambda: server.num_running == 0)
    assert await server.metric("deepseek_engine_generation_tokens_total") == len(ids)


async def test_a_stop_token_that_is_text_is_not_part_of_the_answer(scripted, tokenizer):
    server = await scripted()
    (bang,) = tokenizer.encode("!")
    async with server.begin(GENERATE, prompt="Hi", stop_token_ids=[bang]) as (submit, opened):
        server.engine.emit_text("Hello")
        server.engine.emit(submit.request_id, (bang,), finish_reason="stop", stop_token_id=bang)
        async with opened as reader:
            events = await reader.rest()
    assert "".join(event["text"] for event in events) == "Hello"
    assert events[-1]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("path", [GENERATE, CHAT, COMPLETIONS])
async def test_a_failure_after_the_first_text_is_an_error_event_without_done(scripted, path):
    server = await scripted()
    body = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    async with server.begin(path, **body) as (submit, opened):
        server.engine.emit_text("Hello")
        async with opened as reader:
            await reader.next()
            if path == CHAT:
                await reader.next()
            server.engine.emit(submit.request_id, finish_reason="error", error="the model failed")
            event = await reader.next_event()
            assert event.event == "error"
            assert json.loads(event.data)["error"]["message"] == "the model failed"
            with pytest.raises(StopAsyncIteration):
                await reader.next()
    assert await server.metric("deepseek_engine_requests_total", status="500", finish="error") == 1


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_failure_before_the_first_text_has_a_status(scripted, is_stream):
    server = await scripted()
    async with server.begin(GENERATE, is_stream, prompt="Hi") as (submit, opened):
        server.engine.emit(submit.request_id, finish_reason="error", error="the model failed")
        async with opened as reader:
            response = reader.response if is_stream else reader
            await response.aread()
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the model failed"


async def test_a_silent_stream_carries_comments(scripted):
    server = await scripted(keep_alive_s=0.05)
    async with server.begin(GENERATE, prompt="Hi") as (_, opened), opened as reader:
        await reader.wait_raw(b": keep-alive\n\n: keep-alive\n\n")
        server.engine.emit_text("Hello", finish_reason="length")
        events = await reader.rest()
    assert [event["text"] for event in events] == ["Hello"]


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_caller_that_leaves_cancels_its_request(scripted, is_stream, has_begun):
    server = await scripted()
    body = json.dumps({"prompt": "Hi", "stream": is_stream}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    writer.write(b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await server.eventually(lambda: len(server.engine.submits) == 1)
    if has_begun:
        server.engine.emit_text("Hello")
        if is_stream:
            assert b"200" in await reader.readline()
    assert server.engine.cancels == []
    writer.close()
    await server.eventually(lambda: server.num_running == 0)
    assert server.engine.cancels[0] == (server.engine.submits[0].request_id, None)
    assert await server.metric("deepseek_engine_requests_total", status="499", finish="abort") == 1
    assert await server.metric("deepseek_engine_generation_tokens_total") == (1 if has_begun else 0)


async def test_a_caller_that_leaves_while_sending_its_body_is_recorded_and_nothing_runs(scripted):
    server = await scripted()
    _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    writer.write(b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    async with asyncio.timeout(30):
        while await server.metric("deepseek_engine_requests_total", status="499") != 1:  # noqa: ASYNC110 - a scrape
            await asyncio.sleep(0.01)
    assert server.engine.submits == []


async def test_a_kept_connection_serves_the_next_request_after_each_kind_of_answer(scripted):
    server = await scripted("Hello")
    for _ in range(2):
        assert (await server.post(GENERATE, prompt="Hi")).status_code == 200
        async with server.stream(GENERATE, prompt="Hi") as reader:
            await reader.rest()
        assert (await server.post(GENERATE, prompt=1)).status_code == 400
    assert server.engine.cancels == [], "a finished answer is not taken for a caller that left"
    assert await server.metric("deepseek_engine_requests_total", status="200") == 4


@pytest.mark.parametrize("is_stream", [True, False])
async def test_the_abort_endpoint_ends_an_answer_properly(scripted, is_stream):
    server = await scripted()
    options = {"stream_options": {"include_usage": True}} if is_stream else {}
    async with server.begin(COMPLETIONS, is_stream, prompt="Hi", **options) as (submit, opened):
        server.engine.emit_text("Hello")
        request_id = "abort-me"
        response = await server.client.post(f"/v1/requests/{request_id}/abort")
        assert response.json() == {"id": "abort-me", "aborted": True}
        async with opened as reader:
            if is_stream:
                events = await reader.rest()
                choices, usage = [e["choices"][0] for e in events[:-1]], events[-1]["usage"]
            else:
                assert reader.status_code == 200
                choices, usage = reader.json()["choices"], reader.json()["usage"]
    assert "".join(choice["text"] for choice in choices) == "Hello"
    assert choices[-1]["finish_reason"] == "abort"
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(submit.prompt_token_ids), 1)
    again = await server.client.post("/v1/requests/abort-me/abort")
    assert again.json() == {"id": "abort-me", "aborted": False}


async def test_an_aborted_request_that_never_started_reports_no_tokens(scripted):
    server = await scripted()
    async with server.begin(CHAT, False, messages=[{"role": "user", "content": "Hi"}]) as (_, opened):
        await server.client.post("/requests/abort-me/abort")
        async with opened as response:
            answer = response.json()
    assert answer["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "abort"}
    ]
    assert answer["usage"]["total_tokens"] == 0


async def test_when_the_core_dies_running_requests_fail_probes_say_so_and_the_exit_is_a_failure(scripted):
    server = await scripted(core_death_grace_s=0.5)
    async with (
        server.begin(GENERATE, prompt="Hi") as (_, streaming),
        server.begin(GENERATE, False, prompt="Hi") as (_, whole),
    ):
        server.engine.emit(server.engine.submits[0].request_id, (28120,))
        async with streaming as reader:
            await reader.next()
            server.engine.die()
            event = await reader.next_event()
            assert event.event == "error"
            assert json.loads(event.data)["error"]["type"] == "overloaded_error"
        async with whole as response:
            assert response.status_code == 503
            assert response.headers["retry-after"]
    for response in (await server.client.get("/ready"), await server.post(GENERATE, prompt="Hi")):
        assert response.status_code == 503
        assert "core" in response.json()["error"]["message"]
        assert response.headers["retry-after"]
    assert (await server.client.get("/health")).status_code == 200
    assert await server.exit_status == 1


async def test_an_engine_that_is_dead_at_submit_is_503(scripted):
    server = await scripted()
    server.engine.error = EngineDeadError("gone")
    assert (await server.post(GENERATE, prompt="Hi")).status_code == 503


async def test_draining_lets_running_streams_finish_and_answers_503_to_new_requests(scripted):
    server = await scripted()
    async with server.begin(GENERATE, prompt="Hi") as (submit, opened):
        server.engine.emit_text("Hello")
        async with opened as reader:
            await reader.next()
            server.lifecycle.request_stop()
            await server.eventually(lambda: server.state.is_draining)
            for response in (await server.client.get("/ready"), await server.post(GENERATE, prompt="Hi")):
                assert response.status_code == 503
                assert response.headers["retry-after"]
            assert not server.exit_status.done()
            server.engine.emit_text(" world", finish_reason="stop")
            assert [event["text"] for event in await reader.rest()] == [" world"]
    assert submit.request_id not in {request_id for request_id, _ in server.engine.cancels}
    assert await server.exit_status == 0


@pytest.mark.parametrize("how", ["timeout", "second signal"])
async def test_what_outlasts_the_drain_ends_with_abort(scripted, how):
    server = await scripted(drain_timeout_s=0.05 if how == "timeout" else 30)
    async with server.begin(GENERATE, prompt="Hi") as (_, opened):
        server.engine.emit_text("Hello")
        async with opened as reader:
            await reader.next()
            server.lifecycle.request_stop()
            if how == "second signal":
                await server.eventually(lambda: server.state.is_draining)
                server.lifecycle.request_stop()
            (last,) = await reader.rest()
    assert last["finish_reason"] == "abort"
    assert last["usage"]["completion_tokens"] == 1
    assert await server.exit_status == 0
