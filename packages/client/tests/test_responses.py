"""`/v1/responses`: typed answers, typed events, and a stream that ends with its terminal event."""

import pytest

import deepseek_client as ds
from deepseek_client import errors

PART = {"type": "output_text", "text": "Hello", "annotations": []}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [PART]}
REASONING = {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"}
USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 6,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 16,
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "output": [REASONING, MESSAGE, CALL],
    "usage": USAGE,
    "store": False,
}
BEGUN = RESPONSE | {"status": "in_progress", "output": [], "usage": None}


def event(kind, number=0, **fields):
    return {"type": kind, "sequence_number": number, **fields}


EVENTS = [
    event("response.created", 0, response=BEGUN),
    event("response.in_progress", 1, response=BEGUN),
    event("response.output_item.added", 2, output_index=0, item=REASONING | {"content": []}),
    event("response.reasoning_text.delta", 3, output_index=0, item_id="rs_1", content_index=0, delta="hm"),
    event("response.output_item.done", 4, output_index=0, item=REASONING),
    event("response.output_item.added", 5, output_index=1, item=MESSAGE | {"content": []}),
    event("response.content_part.added", 6, output_index=1, item_id="msg_1", content_index=0, part=PART),
    event("response.output_text.delta", 7, output_index=1, item_id="msg_1", content_index=0, delta="Hel"),
    event("response.output_text.delta", 8, output_index=1, item_id="msg_1", content_index=0, delta="lo"),
    event("response.output_item.done", 9, output_index=1, item=MESSAGE),
    event("response.output_item.added", 10, output_index=2, item=CALL | {"arguments": ""}),
    event("response.function_call_arguments.delta", 11, output_index=2, item_id="fc_1", delta="{}"),
    event("response.output_item.done", 12, output_index=2, item=CALL),
]
LAST = event("response.completed", 13, response=RESPONSE)


async def test_an_answer_is_typed_and_the_server_s_own_fields_survive(server, connect, kit):
    server.script(kit.reply(RESPONSE, x_request_id="req-1"))
    items = ({"role": "user", "content": text} for text in ("Hi",))
    answer = await kit.settle(
        connect().responses.create(input=items, model="m", instructions="Be brief.", reasoning={"effort": "low"})
    )
    assert (answer.output_text, answer.reasoning_text, answer.request_id) == ("Hello", "hm", "req-1")
    assert [(call.name, call.arguments) for call in answer.function_calls] == [("f", "{}")]
    usage = answer.usage.to_usage()
    assert (usage.prompt_cache_hit_tokens, usage.prompt_cache_miss_tokens, usage.completion_tokens) == (4, 6, 6)
    assert answer.model_extra == {"store": False}
    (request,) = server.requests
    assert request.path == "/v1/responses"
    assert request.json == {
        "input": [{"role": "user", "content": "Hi"}],
        "model": "m",
        "instructions": "Be brief.",
        "reasoning": {"effort": "low"},
    }


async def test_a_stream_gives_typed_events_and_ends_with_the_terminal_one(server, connect, kit):
    def silent_after_the_end(connection):
        kit.events(*EVENTS, LAST, done=False)(connection)

    server.script(silent_after_the_end)
    client = connect(profile="deepseek", default_model="m")
    stream = await kit.settle(client.responses.create(input="Hi", stream=True))
    events = await kit.collect(stream)
    assert [type(each).__name__ for each in events[:4]] == [
        "ResponseLifecycleEvent",
        "ResponseLifecycleEvent",
        "ResponseItemEvent",
        "ResponseReasoningDelta",
    ]
    assert "".join(each.delta for each in events if isinstance(each, ds.ResponseTextDelta)) == "Hello"
    assert stream.snapshot.to_wire() == RESPONSE
    assert (stream.finish_reason, stream.usage.total_tokens) == ("completed", 16)
    assert server.requests[0].path == "/responses"
    assert server.requests[0].json == {"input": "Hi", "stream": True, "model": "m"}


async def test_nothing_is_waited_for_after_the_terminal_event(server, connect, kit):
    def stays_open(connection):
        connection.head()
        for data in (*EVENTS, LAST):
            connection.chunk(f"data: {__import__('json').dumps(data)}\n\n".encode())
        connection.until_closed()

    server.script(stays_open)
    stream = await kit.settle(connect(timeout=60).responses.create(input="Hi", stream=True))
    assert len(await kit.collect(stream)) == 14


@pytest.mark.parametrize("cut", range(1, len(EVENTS)))
async def test_a_cut_is_an_error_with_what_had_come(server, connect, kit, cut):
    server.script(kit.events(*EVENTS[:cut], done=False))
    stream = await kit.settle(connect(max_retries=0).responses.create(input="Hi", stream=True))
    with pytest.raises(errors.StreamTruncatedError) as caught:
        await kit.collect(stream)
    texts = "".join(data["delta"] for data in EVENTS[:cut] if data["type"] == "response.output_text.delta")
    assert caught.value.partial_text == caught.value.snapshot.output_text == texts
    assert len(caught.value.snapshot.output) == sum(
        data["type"].endswith("added") and "item" in data for data in EVENTS[:cut]
    )


FAILURE = {"code": "rate_limit_exceeded", "message": "too many"}


@pytest.mark.parametrize(
    "failure",
    [
        event("error", **FAILURE, param=None),
        event("response.failed", response=RESPONSE | {"status": "failed", "error": FAILURE}),
    ],
)
async def test_a_failure_inside_a_stream_is_of_its_status_class(server, connect, kit, failure):
    server.script(kit.events(*EVENTS[:8], failure, done=False))
    stream = await kit.settle(connect().responses.create(input="Hi", stream=True))
    with pytest.raises(errors.RateLimitError, match="too many") as caught:
        await kit.collect(stream)
    assert caught.value.partial_text == "Hel"


async def test_a_failed_answer_is_raised_too(server, connect, kit):
    body = RESPONSE | {"status": "failed", "error": {"code": "server_error", "message": "the engine failed"}}
    server.script(kit.reply(body, x_request_id="req-1"))
    with pytest.raises(errors.InternalServerError, match="the engine failed") as caught:
        await kit.settle(connect().responses.create(input="Hi"))
    assert caught.value.request_id == "req-1"


async def test_an_incomplete_answer_says_why(server, connect, kit):
    body = RESPONSE | {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    server.script(kit.events(*EVENTS, event("response.incomplete", 13, response=body), done=False))
    stream = await kit.settle(connect().responses.create(input="Hi", stream=True))
    answer = await kit.settle(stream.until_done())
    assert (answer.status, stream.finish_reason) == ("incomplete", "max_output_tokens")
