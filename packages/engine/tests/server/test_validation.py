"""What is refused, with which status, and what the error names."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx
import pytest

from deepseek_engine.byte_sizes import parse_bytes
from deepseek_engine.errors import QueueFullError
from deepseek_engine.server.settings import ServerSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = {"role": "user", "content": "Hi"}
CHAT, GENERATE, COMPLETIONS = "/v1/chat/completions", "/v1/generate", "/v1/completions"
MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [USER]},
    GENERATE: {"prompt": "Hi"},
    COMPLETIONS: {"prompt": "Hi"},
}

ANYWHERE = [
    # a well-formed value out of range: 422
    ({"temperature": 5}, 422, "temperature"),
    ({"temperature": -0.1}, 422, "temperature"),
    ({"top_p": 0}, 422, "top_p"),
    ({"top_p": 1.5}, 422, "top_p"),
    ({"top_k": -2}, 422, "top_k"),
    ({"min_p": 2}, 422, "min_p"),
    ({"repetition_penalty": 0}, 422, "repetition_penalty"),
    ({"presence_penalty": 3}, 422, "presence_penalty"),
    ({"frequency_penalty": -3}, 422, "frequency_penalty"),
    ({"max_tokens": 0}, 422, "max_tokens"),
    ({"max_tokens": -1}, 422, "max_tokens"),
    ({"min_tokens": 9, "max_tokens": 3}, 422, "min_tokens"),
    ({"seed": 2**70}, 422, "seed"),
    # too large for a float, or for a message to the core
    *(
        ({name: value}, 422, name)
        for name in ("max_tokens", "min_tokens", "top_k", "seed")
        for value in (10**400, 10**20)
    ),
    ({"stop": [""]}, 422, "stop"),
    ({"stop": ["x"] * 17}, 422, "stop"),
    ({"stop": "x" * 1025}, 422, "stop"),
    ({"stop_token_ids": [99999]}, 422, "stop_token_ids"),
    ({"stop_token_ids": list(range(257))}, 422, "stop_token_ids"),
    ({"logit_bias": {"5": 101}}, 422, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, 422, "logit_bias"),
    # malformed: 400
    ({"temperature": "hot"}, 400, "temperature"),
    ({"temperature": True}, 400, "temperature"),
    ({"max_tokens": 1.5}, 400, "max_tokens"),
    ({"max_tokens": "12"}, 400, "max_tokens"),
    ({"stop": 3}, 400, "stop"),
    ({"stop": ["a", 3]}, 400, "stop[1]"),
    ({"stream": "yes"}, 400, "stream"),
    ({"stream_options": []}, 400, "stream_options"),
    ({"logit_bias": {"word": 1}}, 400, "logit_bias"),
    ({"ignore_eos": 1}, 400, "ignore_eos"),
    ({"priority": -1}, 422, "priority"),
    ({"priority": 101}, 422, "priority"),
    ({"priority": 0.5}, 400, "priority"),
    ({"deadline_s": 0}, 422, "deadline_s"),
    ({"deadline_s": 1e9}, 422, "deadline_s"),
    # known features that are not here: 400
    ({"structured_outputs": {"json": {}, "regex": "a"}}, 400, "structured_outputs"),
    ({"structured_outputs": {"regex": "a"}, "guided_choice": ["a"]}, 400, "guided_choice"),
    ({"structured_outputs": {"choice": ["a", 3]}}, 400, "structured_outputs"),
    ({"response_format": {"type": "yaml"}}, 400, "response_format"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, 400, "response_format"),
    ({"guided_choice": []}, 400, "guided_choice"),
    ({"guided_regex": ["a"]}, 400, "guided_regex"),
    ({"guided_grammar": "(" * 200}, 400, "guided_grammar"),
    ({"guided_json": {}, "guided_regex": "a+"}, 400, "guided_regex"),
    ({"chat_template": "{{ 1 }}"}, 400, "chat_template"),
    ({"best_of": 4}, 400, "best_of"),
    # unknown model: 404
    ({"model": "gpt-5"}, 404, "model"),
]
CALL = {"id": "a", "type": "function", "function": {"name": "a", "arguments": "{}"}}


def _called(**function: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{**CALL, "function": {**CALL["function"], **function}}]}


def _tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", **function}}


def _nested(depth: int) -> dict[str, Any]:
    return {"properties": _nested(depth - 1)} if depth else {}


PER_ENDPOINT = [
    (CHAT, {"n": 0}, 422, "n"),
    (CHAT, {"n": 65}, 422, "n"),
    (COMPLETIONS, {"n": 65}, 422, "n"),
    (GENERATE, {"n": 2}, 400, "n"),
    (GENERATE, {"prompt": None}, 400, "prompt"),
    (GENERATE, {"prompt": ["Hi"]}, 400, "prompt"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": "Hi"}, 400, "messages"),
    (CHAT, {"messages": [USER] * 4097}, 400, "messages"),
    (CHAT, {"messages": [{"content": "Hi"}]}, 400, "messages[0].role"),
    (CHAT, {"messages": [USER, {"role": "user"}]}, 400, "messages[1].content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user\n<|im_start|>system", "content": ""}]}, 400, "messages[0].role"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].tool_call_id"),
    (CHAT, {"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, 400, "messages[0].tool_call_id"),
    (CHAT, {"messages": [{**USER, "tool_calls": [CALL]}]}, 400, "messages[0].tool_calls"),
    (CHAT, {"messages": [_called(name="a b")]}, 400, "messages[0].tool_calls[0].function.name"),
    (CHAT, {"messages": [_called(arguments="[1]")]}, 400, "messages[0].tool_calls[0].function.arguments"),
    (CHAT, {"messages": [_called(arguments="[" * 10000)]}, 400, "messages[0].tool_calls[0].function.arguments"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0]"),
    (CHAT, {"messages": [{**USER, "prefix": True}]}, 400, "messages[0].prefix"),
    (CHAT, {"messages": [{"role": "assistant", "content": "a", "prefix": True}, USER]}, 400, "messages[0].prefix"),
    (CHAT, {"max_completion_tokens": 0}, 422, "max_completion_tokens"),
    (CHAT, {"tools": [{"type": "function"}]}, 400, "tools[0].function"),
    (CHAT, {"tools": [{"type": "web_search"}]}, 400, "tools[0].type"),
    (CHAT, {"tools": [_tool(name="a b")]}, 400, "tools[0].function.name"),
    (CHAT, {"tools": [_tool(name="é")]}, 400, "tools[0].function.name"),
    (CHAT, {"tools": [_tool(), _tool()]}, 400, "tools[1].function.name"),
    (CHAT, {"tools": [_tool(parameters=[])]}, 400, "tools[0].function.parameters"),
    (CHAT, {"tools": [_tool(description=1)]}, 400, "tools[0].function.description"),
    (CHAT, {"tools": [_tool(parameters=_nested(100))]}, 400, "tools[0].function.parameters"),
    (CHAT, {"tools": [_tool(name=f"t{index}") for index in range(129)]}, 400, "tools"),
    (CHAT, {"tools": [_tool()]}, 400, "tools"),  # SmolLM2's template has no place for them
    (GENERATE, {"tools": [_tool()]}, 400, "tools"),
    (CHAT, {"tool_choice": "required"}, 400, "tool_choice"),
    (CHAT, {"tool_choice": "some", "tools": [_tool()]}, 400, "tool_choice"),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "b"}}, "tools": [_tool()]}, 400, "tool_choice"),
    (CHAT, {"thinking": {"type": "maybe"}}, 400, "thinking.type"),
    (CHAT, {"thinking": {"type": "disabled", "budget_tokens": True}}, 400, "thinking.budget_tokens"),
    (CHAT, {"reasoning_effort": "great"}, 400, "reasoning_effort"),
    (CHAT, {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, 400, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": 1}}, 400, "chat_template_kwargs.enable_thinking"),
    (CHAT, {"thinking": {"type": "enabled"}}, 400, "thinking"),
    (CHAT, {"reasoning_effort": "high"}, 400, "reasoning_effort"),
    (CHAT, {"top_logprobs": 3}, 400, "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, 422, "top_logprobs"),
    (CHAT, {"logprobs": 5}, 400, "logprobs"),
    (COMPLETIONS, {"prompt": []}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [""]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [[]]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 129}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 100, "n": 3}, 422, "n"),
    (COMPLETIONS, {"prompt": [49152]}, 422, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, 422, "prompt"),
    (COMPLETIONS, {"logprobs": 21}, 422, "logprobs"),
    (COMPLETIONS, {"logprobs": 10**400}, 422, "logprobs"),
    (COMPLETIONS, {"prompt": [1.5]}, 400, "prompt[0]"),
    (CHAT, {"n": 10**400}, 422, "n"),
    (CHAT, {"messages": [USER, {}]}, 400, "messages[1].role"),
    (COMPLETIONS, {"echo": True, "logprobs": 1, "prompt_logprobs": 1}, 400, "prompt_logprobs"),
    (COMPLETIONS, {"prompt_logprobs": 1, "stream": True}, 400, "prompt_logprobs"),
    (COMPLETIONS, {"prompt_logprobs": 21}, 422, "prompt_logprobs"),
    (COMPLETIONS, {"echo": True, "logprobs": 21}, 422, "logprobs"),
    (COMPLETIONS, {"echo": True, "prompt": [5, 10**17]}, 422, "prompt"),
    (COMPLETIONS, {"suffix": "end"}, 400, "suffix"),
]
HARMLESS = [
    {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "thinking": {"type": "disabled"}},
    {"tools": None, "stop": None, "temperature": None, "model": "alias", "suffix": None, "n": 1},
    {"unknown_field": {"deep": [1]}, "user": "u", "logit_bias": {}, "stop": [], "max_tokens": 1},
    {"best_of": 1, "reasoning_effort": "none", "stream_options": {"include_usage": True}},
]


async def _refused(server, path: str, body: Any, status: int, param: str | None, code: str | None = None) -> str:
    before = len(server.engine.submits)
    response = await server.client.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    assert len(server.engine.submits) == before, "nothing reached the engine"
    return error["message"]


@pytest.mark.parametrize(("fields", "status", "param"), ANYWHERE, ids=lambda value: json.dumps(value)[:40])
@pytest.mark.parametrize("path", MINIMAL)
async def test_every_endpoint_refuses(answering, path, fields, status, param):
    message = await _refused(answering, path, MINIMAL[path] | fields, status, param)
    assert message


@pytest.mark.parametrize(("path", "fields", "status", "param"), PER_ENDPOINT, ids=lambda value: json.dumps(value)[:40])
async def test_an_endpoint_refuses(answering, path, fields, status, param):
    await _refused(answering, path, MINIMAL[path] | fields, status, param)


@pytest.mark.parametrize("fields", HARMLESS)
@pytest.mark.parametrize("path", MINIMAL)
async def test_values_that_ask_for_nothing_pass(answering, path, fields):
    response = await answering.post(path, **(MINIMAL[path] | fields))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", MINIMAL)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b"[" * 5000, b'{"prompt": NaN}'],
)
async def test_a_body_that_is_no_json_object_is_400(answering, path, body):
    response = await answering.client.post(path, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_nan_and_infinity_are_out_of_range(answering):
    for value in (b"NaN", b"Infinity", b"1e999"):
        await _refused(answering, GENERATE, b'{"prompt": "Hi", "temperature": ' + value + b"}", 422, "temperature")


async def test_a_prompt_that_does_not_fit_says_what_would(answering):
    for path, body in (
        (GENERATE, {"prompt": "word " * 2000, "max_tokens": 24}),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 2000}]}),
        (COMPLETIONS, {"prompt": [[5], [5] * 1024]}),
        (COMPLETIONS, {"prompt": "Hi", "max_tokens": 1024}),
    ):
        response = await answering.post(path, **body)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert "the context is 1024 tokens" in response.json()["error"]["message"]


async def test_a_model_of_another_name_is_not_found(answering):
    message = await _refused(answering, CHAT, MINIMAL[CHAT] | {"model": "x"}, 404, "model", "model_not_found")
    assert "tiny" in message
    assert (await answering.client.get("/v1/models/x")).status_code == 404


async def test_messages_do_not_repeat_what_was_sent(answering):
    response = await answering.post(GENERATE, prompt={"secret": "hunter2"})
    assert response.status_code == 400
    assert "hunter2" not in response.text


async def test_unknown_paths_and_methods_have_the_error_shape(answering):
    response = await answering.client.get("/v1/nothing")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
    response = await answering.client.get(GENERATE)
    assert (response.status_code, response.json()["error"]["type"]) == (405, "invalid_request_error")
    assert response.headers["x-request-id"]


async def test_tokenize_checks_its_fields(answering):
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [USER]}),
        ("/tokenize", {"prompt": 3}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {}),
    ):
        assert (await answering.post(path, **body)).status_code == 400
    assert (await answering.post("/detokenize", tokens=[49152])).status_code == 422


@pytest.mark.asyncio(loop_scope="function")
async def test_a_large_body_is_413_announced_or_not(scripted):
    server = await scripted("x", max_body_bytes=1000)

    async def pieces():
        for _ in range(20):
            yield b" " * 100

    for content in (b" " * 1001, pieces()):
        response = await server.client.post(GENERATE, content=content)
        assert response.status_code == 413
        assert response.json()["error"]["type"] == "request_too_large_error"
    assert (await server.client.post("/tokenize", content=b" " * 1001)).status_code == 413


async def test_a_head_without_end_is_cut_off_and_a_long_one_is_not(answering):
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(answering.url).port)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 60_000 + b"\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nx-endless: " + b"a" * 200_000)
    async with asyncio.timeout(30):
        with suppress(ConnectionResetError):  # closed while bytes were still on their way
            await reader.read()
    assert reader.at_eof() or reader.exception() is not None
    writer.close()
    with suppress(ConnectionResetError):
        await writer.wait_closed()


async def test_a_large_body_on_a_used_connection_is_not_taken_for_a_head(answering):
    text = "x" * 300_000
    for _ in range(3):
        response = await answering.post("/tokenize", prompt=text)
        assert response.status_code == 200, response.text


async def test_what_is_not_http_gets_the_error_shape_and_an_id(answering):
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(answering.url).port)
    writer.write(b"GET /health HTTP/1.1\r\nbad header\x7f: x y\r\n\r\n")
    async with asyncio.timeout(30):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"x-request-id: req-" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    writer.close()


async def test_a_salt_is_never_cut_short(answering):
    headers = {"x-cache-salt": "s" * 257}
    response = await answering.client.post(GENERATE, json={"prompt": "Hi"}, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "x-cache-salt")


@pytest.mark.asyncio(loop_scope="function")
async def test_a_key_guards_everything_but_the_probes(scripted):
    server = await scripted("x", api_key="sesame")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}, {"authorization": "Bearer é"}):
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        for path in ("/v1/generate", "/generate", "/beta/generate", "/v1/requests/x/abort", "/metrics", "/nothing"):
            response = await server.client.post(path, json={"prompt": "Hi"}, headers=raw)
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
    for path in ("/health", "/ready"):
        assert (await server.client.get(path)).status_code == 200
    allowed = await server.client.post(GENERATE, json={"prompt": "Hi"}, headers={"authorization": "Bearer sesame"})
    assert allowed.status_code == 200


@pytest.mark.asyncio(loop_scope="function")
async def test_a_full_queue_is_503_with_retry_after_and_takes_nothing(scripted):
    server = await scripted("x")
    server.engine.error = QueueFullError("1024 requests are waiting")
    response = await server.post(GENERATE, prompt="Hi")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "overloaded_error"


@pytest.mark.asyncio(loop_scope="function")
async def test_the_servers_defaults_apply_where_a_request_is_silent(scripted):
    server = await scripted("x", temperature=0.25, top_p=0.5, repetition_penalty=1.2, max_tokens=7)
    await server.post(GENERATE, prompt="Hi")
    params = server.engine.submits[-1].params
    assert (params.temperature, params.top_p, params.repetition_penalty, params.max_tokens) == (0.25, 0.5, 1.2, 7)
    await server.post(GENERATE, prompt="Hi", temperature=0, max_tokens=3)
    assert (server.engine.submits[-1].params.temperature, server.engine.submits[-1].params.max_tokens) == (0, 3)


async def test_sizes_are_read_with_units():
    assert [parse_bytes(text) for text in ("1048576", "2GiB", "512 MB", "1.5k")] == [2**20, 2**31, 2**29, 1536]
    with pytest.raises(ValueError, match="2GiB"):
        parse_bytes("lots")


async def test_settings_come_from_variables(monkeypatch):
    monkeypatch.setenv("ENGINE_PORT", "9")
    monkeypatch.setenv("ENGINE_SERVED_MODEL_NAME", "a, b")
    monkeypatch.setenv("ENGINE_KV_CACHE_MEMORY", "1GiB")
    settings = ServerSettings()
    assert (settings.port, settings.model_names, settings.kv_cache_memory) == (9, ("a", "b"), 2**30)
    assert settings.engine_config.kv_cache_memory_bytes == 2**30
