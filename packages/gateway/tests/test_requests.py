"""Requests that are refused before an engine sees them."""

import asyncio
import json
import logging

import pytest

from deepseek_gateway.access_log import AccessLog, JsonFormatter
from deepseek_gateway.testing.stack import Stack, running_stack


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"[1]", None),
        (b'{"prompt": "\\ud800"}', None),
        (b"[" * 100_000, None),
        (b'{"prompt": "a", "model": 5}', "model"),
        (b'{"prompt": "a", "model": "fake-model:\\u0000"}', "model"),
        (b'{"prompt": "a", "model": "x\\nrequest_id=forged"}', "model"),
        (b'{"prompt": "a", "stream": "yes"}', "stream"),
        (b'{"prompt": "a", "stream_options": 1}', "stream_options"),
    ],
)
async def test_a_malformed_body_is_a_400_that_names_the_fault(stack: Stack, body: bytes, param: str | None) -> None:
    reply = await stack.caller.post("/v1/generate", body)
    assert (reply.status, reply.error["type"], reply.error["param"]) == (400, "invalid_request_error", param)
    assert not stack.engine.bodies
    assert await stack.running.rows() == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "a"}], "x": DEEP}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "a"}], "tools": DEEP}'),
        ("/v1/messages", '{"max_tokens": 3, "messages": [{"role": "user", "content": "a"}], "x": DEEP}'),
        ("/v1/responses", '{"input": "a", "metadata": DEEP}'),
        ("/v1/embeddings", '{"input": DEEP}'),
    ],
)
async def test_a_body_that_is_nested_too_deeply_to_be_sent_on_is_a_400(stack: Stack, path: str, text: str) -> None:
    whole = text.replace("DEEP", "[" * 90 + "]" * 90)
    assert (await stack.caller.post(path, whole.encode())).status < 500
    before = len(stack.engine.bodies)
    for levels in (100, 300, 1000):
        reply = await stack.caller.post(path, text.replace("DEEP", "[" * levels + "]" * levels).encode())
        assert reply.status == 400
        assert "JSON" in reply.error["message"] or "100 levels" in reply.error["message"]
    assert len(stack.engine.bodies) == before


async def test_a_long_conversation_is_not_a_deep_one(stack: Stack) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}] * 500
    assert (await stack.caller.post("/v1/chat/completions", {"messages": messages})).status == 200


async def test_a_body_over_the_cap_is_a_413(state_dir) -> None:
    async with running_stack(state_dir, max_body_bytes=2000) as stack:
        reply = await stack.caller.post("/v1/generate", b'{"prompt": "' + b"x" * 3000 + b'"}')
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")
        assert "2000" in reply.error["message"]
        assert (await stack.caller.post()).status == 200


async def test_a_body_over_the_cap_is_a_413_without_a_length_too(state_dir) -> None:
    async def parts():
        for _ in range(100):
            yield b"x" * 100

    async with running_stack(state_dir, max_body_bytes=2000) as stack:
        reply = await stack.caller.post("/v1/generate", parts())
        assert reply.status == 413


async def test_a_body_that_never_ends_is_a_400(state_dir) -> None:
    async with running_stack(state_dir, body_timeout_s=0.05) as stack:
        host, port = stack.running.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/generate HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.caller.key}\r\n"
        writer.write(f"{head}content-length: 100\r\n\r\n{{".encode())
        assert b"400 Bad Request" in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_unknown_paths_and_wrong_methods_have_error_bodies(stack: Stack) -> None:
    missing = await stack.caller.get("/v1/nothing")
    assert (missing.status, missing.error["code"]) == (404, "not_found")
    wrong = await stack.caller.get("/v1/generate")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    for reply in (missing, wrong):
        assert reply.headers["x-request-id"].startswith("req-")


async def test_the_engines_own_refusals_pass_through(stack: Stack) -> None:
    reply = await stack.caller.post(body={"prompt": "a", "fake": {"status": 422}})
    assert (reply.status, reply.error["message"]) == (422, "the script says so")
    reply = await stack.caller.post(body={"prompt": "a", "stream": True, "fake": {"status": 400}})
    assert (reply.status, reply.error["message"]) == (400, "the script says so")
    reply = await stack.caller.post(body={"prompt": "a", "model": "no-such"})
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    rows = await stack.running.rows(3)
    assert {(row.status, row.end_reason, row.prompt_tokens, row.accuracy) for row in rows} == {
        ("failed", "rejected", 0, "exact")
    }


async def test_more_requests_than_the_gateway_takes_are_503(state_dir) -> None:
    async with running_stack(state_dir, max_requests=1) as stack:
        body = {"prompt": "a", "fake": {"tokens": 1, "gated": True}}
        running = asyncio.create_task(stack.caller.post(body=body))
        await stack.engine.until_running()
        reply = await stack.caller.post()
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        stack.engine.allow()
        assert (await running).status == 200


def access_lines(stack: Stack) -> list[bytes]:
    """What the access log writes from now on."""
    lines: list[bytes] = []
    stack.gateway.access_log = AccessLog("text", lines.append)
    return lines


async def test_the_access_log_has_one_line_without_secrets_or_text(stack: Stack, caplog) -> None:
    caplog.set_level("DEBUG")
    written = access_lines(stack)
    await stack.caller.post(body={"prompt": "my secret prompt", "model": "fake-model"})
    await stack.row()
    stack.gateway.access_log.flush()
    lines = b"".join(written).decode().splitlines()
    assert len(lines) == 1
    public_id, secret = stack.caller.key.split("_")[1:3]
    assert f"key={public_id} route=/v1/generate model=fake-model status=200 outcome=finished" in lines[0]
    assert "completion_tokens=8" in lines[0]
    everything = "\n".join([*lines, *(record.getMessage() for record in caplog.records)])
    assert secret not in everything
    assert "secret prompt" not in everything
    assert "w1" not in everything


async def test_a_model_name_cannot_forge_a_log_line(stack: Stack) -> None:
    written = access_lines(stack)
    await stack.caller.post(body={"prompt": "a", "model": "x request_id=forged key=other"})
    await stack.row()
    stack.gateway.access_log.flush()
    lines = b"".join(written).decode().splitlines()
    assert len(lines) == 1
    assert "key=other" not in lines[0]


async def test_the_access_log_as_json_has_a_number_for_each_number(stack: Stack) -> None:
    lines: list[bytes] = []
    stack.gateway.access_log = AccessLog("json", lines.append)
    await stack.caller.post(body={"prompt": "a", "model": "x {}"})
    await stack.caller.post()
    await stack.row()
    stack.gateway.access_log.flush()
    refused, answered = [json.loads(line) for line in b"".join(lines).splitlines()]
    assert (refused["status"], refused["model"], refused["completion_tokens"]) == (404, "x {}", 0)
    assert (answered["status"], answered["outcome"], answered["completion_tokens"]) == (200, "finished", 8)
    assert answered["key"] == stack.caller.key_id
    assert answered["total_ms"] > 0


async def test_the_access_log_can_be_off(stack: Stack) -> None:
    lines: list[bytes] = []
    stack.gateway.access_log = AccessLog("off", lines.append)
    await stack.caller.post()
    stack.gateway.access_log.flush()
    assert lines == []


def test_other_lines_are_json_too_when_the_access_log_is() -> None:
    record = logging.LogRecord("a.b", logging.WARNING, "", 1, 'broken "%s"\n', ("x",), None)
    fields = json.loads(JsonFormatter().format(record))
    assert (fields["level"], fields["logger"], fields["message"]) == ("warning", "a.b", 'broken "x"\n')
