"""Plain calls over a real socket: what is sent, what comes back."""

import pickle

import pytest

import deepseek_client as ds
from deepseek_client import errors


async def test_generate_returns_text_usage_and_request_id(server, connect, kit):
    server.script(kit.reply(kit.GENERATION, x_request_id="req-7"))
    answer = await kit.settle(connect().generate("Hi", max_tokens=5, temperature=0.5, stop=["\n"]))
    assert str(answer) == answer.text == "Hello"
    assert (answer.finish_reason, answer.usage.total_tokens, answer.request_id) == ("stop", 5, "req-7")
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/generate")
    assert request.json == {"prompt": "Hi", "max_tokens": 5, "temperature": 0.5, "stop": ["\n"]}
    assert request.headers["authorization"] == "Bearer dsk_test_secretsecret1234"
    assert request.headers["user-agent"].startswith("deepseek-client/")


async def test_max_tokens_is_512_unless_said_otherwise(server, connect, kit):
    server.script(kit.reply(kit.GENERATION))
    await kit.settle(connect().generate("Hi"))
    assert server.requests[0].json == {"prompt": "Hi", "max_tokens": 512}


async def test_messages_may_be_dicts_or_models_and_unknown_fields_pass_both_ways(server, connect, kit):
    server.script(kit.reply(kit.CHAT | {"system_fingerprint": "fp"}))
    message = ds.ChatMessage(role="user", content="Hi")
    answer = await kit.settle(
        connect().chat.completions.create(
            messages=[message, {"role": "assistant", "content": "Yes?", "mood": "good"}],
            model="m",
            extra_body={"top_a": 0.1},
            extra_headers={"X-Trace": "t"},
        )
    )
    assert answer.choices[0].message.content == "Hello"
    assert answer.model_extra == {"system_fingerprint": "fp"}
    (request,) = server.requests
    assert request.json == {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?", "mood": "good"}],
        "model": "m",
        "top_a": 0.1,
    }
    assert request.headers["x-trace"] == "t"


async def test_completions_and_models_have_their_routes(server, connect, kit):
    completion = {"id": "c", "choices": [{"index": 0, "text": "x", "finish_reason": "length"}]}
    models = {"object": "list", "data": [{"id": "a/b", "object": "model", "owned_by": "us"}]}
    server.script(kit.reply(completion), kit.reply(models, x_request_id="r"), kit.reply(models["data"][0]))
    client = connect()
    assert (await kit.settle(client.completions.create(prompt=[1, 2], max_tokens=1))).choices[0].text == "x"
    listed = await kit.settle(client.models.list())
    assert ([model.id for model in listed.data], listed.request_id) == (["a/b"], "r")
    assert (await kit.settle(client.models.retrieve("a/b"))).owned_by == "us"
    assert [(request.method, request.path) for request in server.requests] == [
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/a/b"),
    ]


async def test_a_base_url_with_a_path_is_taken_as_it_stands(server, connect, kit):
    server.script(kit.reply(kit.CHAT))
    await kit.settle(connect(base_url=f"{server.url}/beta/").chat.completions.create(messages=kit.MESSAGES))
    assert server.requests[0].path == "/beta/chat/completions"


async def test_generate_falls_back_to_chat_on_a_foreign_server_and_remembers(server, connect, kit):
    server.script(
        kit.reply({"detail": "Not Found"}, 404), kit.reply(kit.CHAT), kit.reply(kit.CHAT), kit.reply(kit.CHAT)
    )
    client = connect()
    assert (await kit.settle(client.generate("Hi", model="m"))).text == "Hello"
    await kit.settle(client.generate("Hi", model="m", top_k=1))
    await kit.settle(client.with_options(max_retries=0).generate("Hi", model="m"))
    assert [request.path for request in server.requests] == ["/v1/generate", *["/v1/chat/completions"] * 3]
    assert server.requests[2].json == {"messages": kit.MESSAGES, "max_tokens": 512, "model": "m", "top_k": 1}


async def test_a_raw_prompt_falls_back_to_completions(server, connect, kit):
    completion = {"id": "c", "choices": [{"index": 0, "text": "x", "finish_reason": "length"}], "usage": kit.USAGE}
    server.script(kit.reply({}, 405), kit.reply(completion))
    answer = await kit.settle(connect().generate("Once", raw=True, model="m"))
    assert (answer.text, answer.finish_reason, answer.usage.total_tokens) == ("x", "length", 5)
    assert server.requests[1].json == {"prompt": "Once", "max_tokens": 512, "model": "m"}


async def test_the_profile_decides_where_it_is_known(server, connect, kit):
    server.script(kit.reply(kit.CHAT), kit.reply({"detail": "Not Found"}, 404))
    await kit.settle(connect(profile="openai").generate("Hi"))
    assert server.requests[0].path == "/v1/chat/completions"
    with pytest.raises(errors.NotFoundError):
        await kit.settle(connect(profile="gateway").generate("Hi"))


async def test_an_unknown_model_is_not_taken_for_a_missing_route(server, connect, kit):
    body = {"error": {"message": "no model x", "type": "not_found_error", "param": "model", "code": "model_not_found"}}
    server.script(kit.reply(body, 404))
    with pytest.raises(errors.NotFoundError, match="no model x"):
        await kit.settle(connect().generate("Hi", model="x"))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        (400, {"error": {"message": "you must provide a model parameter", "type": "invalid_request_error"}}),
        (422, {"detail": [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]}),
        (422, {"error": {"message": "Failed to deserialize the JSON body: missing field `model` at line 1"}}),
    ],
)
async def test_a_server_that_requires_a_model_is_asked_for_its_list_once(server, connect, kit, refusal):
    status, body = refusal
    models = {"object": "list", "data": [{"id": "first"}, {"id": "second"}]}
    server.script(kit.reply(body, status), kit.reply(models), kit.reply(kit.CHAT))
    client = connect(profile="openai")
    await kit.settle(client.chat.completions.create(messages=kit.MESSAGES))
    await kit.settle(client.generate("Hi"))
    assert [request.path for request in server.requests] == [
        "/v1/chat/completions",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/chat/completions",
    ]
    assert [request.json.get("model") for request in server.requests if request.body] == [None, "first", "first"]


async def test_the_default_model_and_headers_go_with_each_call_and_with_options_changes_them(server, connect, kit):
    server.script(kit.reply(kit.GENERATION))
    client = connect(default_model="m1", default_headers={"X-Team": "a"})
    await kit.settle(client.generate("Hi"))
    await kit.settle(client.generate("Hi", model="m2"))
    await kit.settle(client.with_options(default_model="m3", api_key="other-key").generate("Hi"))
    assert [request.json["model"] for request in server.requests] == ["m1", "m2", "m3"]
    assert {request.headers["x-team"] for request in server.requests} == {"a"}
    assert [request.headers["authorization"] for request in server.requests][1:] == [
        "Bearer dsk_test_secretsecret1234",
        "Bearer other-key",
    ]
    assert server.num_connections == 1


async def test_an_unknown_parameter_is_refused_with_the_way_out(connect, kit):
    with pytest.raises(TypeError, match=r"unknown parameter: beam_width\. .*extra_body"):
        await kit.settle(connect().generate("Hi", beam_width=3))


async def test_a_value_that_json_cannot_hold_is_refused_before_sending(server, connect, kit):
    with pytest.raises(ValueError, match="not JSON compliant"):
        await kit.settle(connect().generate("Hi", temperature=float("nan")))
    with pytest.raises(TypeError, match="cannot be sent as JSON"):
        await kit.settle(connect().generate("Hi", extra_body={"x": object()}))
    assert server.requests == []


async def test_newlines_before_the_json_are_the_queue_s_and_do_no_harm(server, connect, kit):
    import json

    server.script(kit.reply(b"\n\n\n" + json.dumps(kit.GENERATION).encode()))
    assert (await kit.settle(connect().generate("Hi"))).text == "Hello"


async def test_a_compressed_answer_is_read(server, connect, kit):
    import gzip
    import json

    server.script(kit.reply(gzip.compress(json.dumps(kit.GENERATION).encode()), content_encoding="gzip"))
    assert (await kit.settle(connect().generate("Hi"))).text == "Hello"


async def test_reasoning_is_read_under_both_names(server, connect, kit):
    body = {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "4", "reasoning": "2+2"}}]}
    server.script(kit.reply(body))
    answer = await kit.settle(connect().chat.completions.create(messages=kit.MESSAGES))
    assert answer.choices[0].message.reasoning_content == "2+2"
    assert answer.choices[0].message.to_wire() == {"role": "assistant", "content": "4", "reasoning_content": "2+2"}


@pytest.mark.parametrize("profile", ["auto", "openai"])
async def test_an_answer_knows_how_often_and_how_long_it_was_asked_for(server, connect, kit, profile):
    busy, body = kit.reply({}, 503, retry_after="0"), kit.GENERATION if profile == "auto" else kit.CHAT
    server.script(busy, busy, kit.reply(body, x_request_id="req-3"), kit.reply(kit.CHAT))
    client = connect(profile=profile)
    answer = await kit.settle(client.generate("Hi", model="m"))
    assert (answer.request_id, answer.retries_taken) == ("req-3", 2)
    assert answer.elapsed > 0
    assert {"retries_taken", "elapsed"}.isdisjoint(answer.to_wire())
    assert pickle.loads(pickle.dumps(answer)).elapsed == answer.elapsed
    again = await kit.settle(client.chat.completions.create(messages=kit.MESSAGES))
    assert (again.retries_taken, again.elapsed > 0) == (0, True)
    assert (ds.Generation(id="g", text="made here").elapsed, ds.Generation(id="g", text="").retries_taken) == (None, 0)


async def test_a_stream_knows_how_often_and_how_long_it_was_asked_for(server, connect, kit):
    server.script(kit.reply({}, 503, retry_after="0"), kit.events(kit.text_event("Hel"), kit.text_event("lo", "stop")))
    stream = connect().generate_stream("Hi")
    assert (stream.elapsed, stream.retries_taken) == (None, 0)
    assert await kit.take(stream) == "Hel"
    first = stream.elapsed
    assert await kit.collect(stream) == ["lo"]
    assert (stream.retries_taken, stream.generation.retries_taken) == (1, 1)
    assert 0 < first <= stream.elapsed == stream.elapsed == stream.generation.elapsed


async def test_what_had_come_of_a_broken_stream_knows_it_too(server, connect, kit):
    server.script(kit.reply({}, 503, retry_after="0"), kit.events(kit.text_event("Hel"), done=False, x_request_id="r"))
    with pytest.raises(errors.StreamTruncatedError) as caught:
        await kit.collect(connect().generate_stream("Hi"))
    snapshot = caught.value.snapshot
    assert (snapshot.request_id, snapshot.retries_taken, caught.value.retries_taken) == ("r", 1, 1)
    assert snapshot.elapsed > 0
    assert caught.value.elapsed > 0
