"""What callers get of an engine's answers."""

import json

import pytest

from deepseek_gateway.testing.caller import next_event
from deepseek_gateway.testing.stack import Stack, running_stack

DIALECTS = {
    "generate": {"prompt": "a b c"},
    "chat/completions": {"messages": [{"role": "user", "content": "a b c"}]},
    "completions": {"prompt": "a b c"},
}


async def test_no_event_waits_for_the_next(stack: Stack) -> None:
    body = {"prompt": "a", "stream": True, "fake": {"tokens": 3, "gated": True}}
    stack.engine.allow()
    async with stack.caller.open("/v1/generate", body) as answer:
        for word in ("w1", "w2", "w3"):
            assert word in await next_event(answer)  # the engine has nothing after this word: it came alone
            stack.engine.allow()
        assert '"finish_reason":"stop"' in await next_event(answer)
        assert await next_event(answer) == "data: [DONE]"


@pytest.mark.parametrize("prefix", ["", "/v1", "/beta"])
@pytest.mark.parametrize("path", DIALECTS)
async def test_every_dialect_answers_under_every_prefix(stack: Stack, prefix: str, path: str) -> None:
    whole = await stack.caller.post(f"{prefix}/{path}", DIALECTS[path])
    assert whole.status == 200
    assert whole.json["usage"]["completion_tokens"] == 8
    streamed = await stack.caller.post(f"{prefix}/{path}", {**DIALECTS[path], "stream": True})
    assert streamed.status == 200
    assert streamed.events[-1] == "data: [DONE]"


async def test_stream_headers_forbid_buffering_and_name_the_request(stack: Stack) -> None:
    reply = await stack.caller.post(body={"prompt": "a", "stream": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in reply.headers
    row = await stack.row()
    assert reply.headers["x-request-id"] == row.request_id


async def test_chat_stream_without_a_wish_has_no_usage_and_no_trailer(stack: Stack) -> None:
    reply = await stack.caller.post("/v1/chat/completions", {**DIALECTS["chat/completions"], "stream": True})
    assert "usage" not in reply.body.decode()
    assert all(chunk["choices"] for chunk in reply.chunks)


async def test_chat_stream_with_include_usage_has_it_once_at_the_end(stack: Stack) -> None:
    body = {**DIALECTS["chat/completions"], "stream": True, "stream_options": {"include_usage": True}}
    reply = await stack.caller.post("/v1/chat/completions", body)
    assert [("usage" in chunk) for chunk in reply.chunks] == [False] * (len(reply.chunks) - 1) + [True]
    assert reply.chunks[-1]["choices"] == []
    assert reply.chunks[-1]["usage"]["completion_tokens"] == 8


async def test_continuous_usage_passes_untouched_when_asked_for(stack: Stack) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = await stack.caller.post(body={"prompt": "a", "stream": True, "stream_options": options})
    assert [chunk["usage"]["completion_tokens"] for chunk in reply.chunks] == [1, 2, 3, 4, 5, 6, 7, 8, 8]


async def test_generate_stream_carries_usage_in_its_last_event_only(stack: Stack) -> None:
    reply = await stack.caller.post(body={"prompt": "a", "stream": True})
    assert ["usage" in chunk for chunk in reply.chunks] == [False] * 8 + [True]
    assert reply.chunks[-1]["finish_reason"] == "length" or reply.chunks[-1]["finish_reason"] == "stop"


async def test_a_server_that_sends_usage_first_in_its_last_chunk_is_billed_and_stripped(stack: Stack) -> None:
    body = {**DIALECTS["chat/completions"], "stream": True, "fake": {"foreign": True}}
    reply = await stack.caller.post("/v1/chat/completions", body)
    assert "usage" not in reply.body.decode()
    row = await stack.row()
    assert (row.completion_tokens, row.accuracy) == (8, "exact")


async def test_a_server_without_a_trailer_gets_one_made_when_the_caller_asked(stack: Stack) -> None:
    options = {"include_usage": True}
    body = {**DIALECTS["chat/completions"], "stream": True, "stream_options": options, "fake": {"foreign": True}}
    reply = await stack.caller.post("/v1/chat/completions", body)
    assert reply.chunks[-1]["choices"] == []
    assert reply.chunks[-1]["usage"]["completion_tokens"] == 8
    assert ["usage" in chunk for chunk in reply.chunks].count(True) == 1


async def test_the_engine_never_sees_the_callers_key_and_gets_an_id_and_a_salt_of_ours(stack: Stack) -> None:
    first = await stack.caller.post()
    await stack.caller.post()
    one, two = stack.engine.headers
    assert stack.caller.key not in json.dumps(stack.engine.headers)
    assert "authorization" not in one
    assert one["x-request-id"] != two["x-request-id"] != first.headers["x-request-id"]
    assert one["x-cache-salt"] == stack.caller.key.split("_")[1]


async def test_the_engine_gets_the_callers_fields_and_is_asked_for_usage(stack: Stack) -> None:
    await stack.caller.post(body={"prompt": "日本", "stream": True, "top_k": 3, "unheard_of": {"x": [1.5, None]}})
    sent = stack.engine.bodies[0]
    assert sent["prompt"] == "日本"
    assert (sent["top_k"], sent["unheard_of"]) == (3, {"x": [1.5, None]})
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


async def test_a_double_key_reaches_the_engine_as_the_gateway_read_it(stack: Stack) -> None:
    caller = stack.with_key(models=("fake-model",))
    reply = await caller.post("/v1/generate", b'{"prompt": "a", "model": "secret-model", "model": "fake-model"}')
    assert reply.status == 200
    assert stack.engine.bodies[0]["model"] == "fake-model"


async def test_a_silent_engine_does_not_silence_the_stream(state_dir) -> None:
    async with running_stack(state_dir, keep_alive_s=0.1) as stack:
        body = {"prompt": "a", "stream": True, "fake": {"tokens": 1, "queued": True, "gated": True}}
        async with stack.caller.open("/v1/generate", body) as answer:
            assert await next_event(answer) == ": keep-alive"
            assert await next_event(answer) == ": keep-alive"
            stack.engine.allow(2)
            while (event := await next_event(answer)) == ": keep-alive":
                pass
            assert "w1" in event


async def test_models_are_listed_and_found(stack: Stack) -> None:
    listed = await stack.caller.get("/models")
    assert [model["id"] for model in listed.json["data"]] == ["fake-model"]
    assert (await stack.caller.get("/v1/models/fake-model")).json["id"] == "fake-model"
    missing = await stack.caller.get("/v1/models/other")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_status_pages_need_no_key(stack: Stack) -> None:
    caller = stack.caller.with_key(None)
    assert (await caller.get("/health")).status == 200
    assert (await caller.get("/ready")).status == 200
    assert (await caller.get("/version")).json["version"]
    await stack.caller.post()
    await stack.row()
    text = (await caller.get("/metrics")).body.decode()
    assert 'deepseek_gateway_tokens_total{kind="completion"} 8.0' in text
    assert 'deepseek_gateway_requests_total{route="/v1/generate",status="200"} 1.0' in text
    assert "deepseek_gateway_in_flight_requests 0.0" in text
