"""Every dialect x every way in which an answer ends: the books have what the engine counted, once."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.relay.stages import EndAnswer
from deepseek_gateway.routes.generation import GenerationRoute
from deepseek_gateway.testing.caller import next_event, until
from deepseek_gateway.testing.stack import Stack, running_stack

TURN = {"messages": [{"role": "user", "content": "a b c"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/generate": {"prompt": "a b c"},
    "/v1/completions": {"prompt": "a b c"},
    "/v1/chat/completions": TURN,
    "/v1/messages": {**TURN, "max_tokens": 50},
    "/v1/responses": {"input": "a b c"},
}
PROMPT, CACHED = 7, 2
STREAM_ENDINGS = ["normal", "disconnect", "slow", "error", "cut", "filter", "limit", "refused"]
WHOLE_ENDINGS = ["normal", "disconnect", "cut", "filter", "refused"]


@dataclass(frozen=True, slots=True)
class Expected:
    """A row of the ledger."""

    status: str
    reason: str
    http_status: int
    accuracy: str


EXPECTED = {
    "normal": Expected("finished", "stop", 200, "exact"),
    "disconnect": Expected("cancelled", "client_disconnect", 499, "exact"),
    "slow": Expected("cancelled", "slow_client", 499, "exact"),
    "error": Expected("failed", "upstream_error", 200, "exact"),
    "cut": Expected("failed", "upstream_error", 502, "estimated"),
    "filter": Expected("finished", "content_filter", 200, "exact"),
    "limit": Expected("failed", "limit_tokens_per_minute", 429, "exact"),
    "refused": Expected("failed", "rejected", 422, "exact"),
}


class Filter:
    """Ends an answer at its third word, as a word filter does."""

    def pass_on(self, frame: bytes) -> bytes:
        if b'"w3' not in frame:
            return frame
        chunk = json.loads(frame.removeprefix(b"data: "))
        chunk.pop("usage", None)
        for choice in chunk.get("choices", [chunk]):
            choice["finish_reason"] = "content_filter"
            if "delta" in choice:
                choice["delta"] = {}
            else:
                choice["text"] = ""
        raise EndAnswer(b"data: " + json.dumps(chunk).encode() + b"\n\n", "content_filter")

    def body(self, body: bytes) -> bytes:
        raise EndAnswer(body.replace(b'"stop"', b'"content_filter"').replace(b"w3", b"**"), "content_filter")


def script_of(ending: str) -> dict[str, Any]:
    fake: dict[str, Any] = {"tokens": 6, "prompt_tokens": PROMPT, "cached_tokens": CACHED}
    special: dict[str, dict[str, Any]] = {
        "disconnect": {"gated": True},
        "slow": {"tokens": 3000, "word_bytes": 20_000},
        "error": {"error_after": 4},
        "cut": {"cut_after": 4},
        "filter": {"tokens": 40, "gated": True},
        "limit": {"tokens": 300},
        "refused": {"status": 422},
    }
    return {**fake, **special.get(ending, {})}


async def run(stack: Stack, path: str, ending: str, *, stream: bool) -> bytes:
    """Have one request end so; gives what the caller saw."""
    caller = stack.with_key(tokens_per_minute=60) if ending == "limit" else stack.caller
    body = {**BODIES[path], "stream": stream, "fake": script_of(ending)}
    stack.engine.allow(4 if stream else 40)
    async with caller.open(path, body) as answer:
        if ending == "slow":
            answer.connection.transport.pause_reading()
            await until(lambda: stack.gateway.running == 0)
        elif ending == "disconnect":
            seen = ""
            while '"w4' not in seen:
                seen = await next_event(answer)
            answer.close()
        else:
            return await answer.read()
    return b""


async def leave_whole(stack: Stack, path: str) -> None:
    """Ask for an answer in one piece, and leave after the engine's fourth word."""
    stack.engine.allow(4)
    asking = asyncio.create_task(stack.caller.post(path, {**BODIES[path], "fake": script_of("disconnect")}))
    await until(lambda: any(job.num_sent == 4 for job in stack.engine.running.values()))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


def last_events(seen: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of a stream's last events."""
    events: list[tuple[str, dict[str, Any]]] = []
    for event in seen.strip().split("\n\n"):
        name, _, data = event.rpartition("data: ")
        events.append((name.strip().removeprefix("event: "), {} if data == "[DONE]" else json.loads(data)))
    return events[-3:]


def native_end(ending: str, seen: str) -> None:
    events = last_events(seen)
    if ending in {"normal", "filter"}:
        assert seen.endswith("data: [DONE]\n\n")
        choice = events[-2][1].get("choices", [events[-2][1]])[0]
        assert choice["finish_reason"] == {"normal": "stop", "filter": "content_filter"}[ending]
    else:
        assert events[-1][0] == "error"
        assert events[-1][1]["error"]["message"]
        assert "[DONE]" not in seen


def messages_end(ending: str, seen: str) -> None:
    events = last_events(seen)
    if ending in {"normal", "filter"}:
        assert events[-1][0] == "message_stop"
        delta = events[-2][1]
        assert delta["delta"]["stop_reason"] == {"normal": "end_turn", "filter": "refusal"}[ending]
        assert delta["usage"]["input_tokens"] == PROMPT - CACHED
        assert delta["usage"]["cache_read_input_tokens"] == CACHED
    else:
        assert (events[-1][0], events[-1][1]["type"]) == ("error", "error")


def responses_end(ending: str, seen: str) -> None:
    (name, data) = last_events(seen)[-1]
    assert name == {"normal": "response.completed", "filter": "response.incomplete"}.get(ending, "response.failed")
    assert data["response"]["usage"]["input_tokens"] == PROMPT


ENDS: dict[str, Callable[[str, str], None]] = {"/v1/messages": messages_end, "/v1/responses": responses_end}


@pytest.mark.parametrize("ending", STREAM_ENDINGS)
@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_is_billed_as_the_engine_counted(state_dir: Path, path: str, ending: str, monkeypatch) -> None:
    if ending == "filter":
        monkeypatch.setattr(GenerationRoute, "_stages", lambda *_: (Filter(),))
    waits = {"send_timeout_s": 0.3, "keep_alive_s": 0.3} if ending == "slow" else {}
    async with running_stack(state_dir, **waits) as stack:
        seen = await run(stack, path, ending, stream=True)
        await check(stack, path, ending)
    if ending == "refused":
        assert "the script says so" in seen.decode()
    elif seen:
        ENDS.get(path, native_end)(ending, seen.decode())


@pytest.mark.parametrize("ending", WHOLE_ENDINGS)
@pytest.mark.parametrize("path", BODIES)
async def test_a_whole_answer_is_billed_as_the_engine_counted(
    stack: Stack, path: str, ending: str, monkeypatch
) -> None:
    if ending == "filter":
        monkeypatch.setattr(GenerationRoute, "_stages", lambda *_: (Filter(),))
    if ending == "disconnect":
        await leave_whole(stack, path)
    else:
        seen = await run(stack, path, ending, stream=False)
        assert (b"**" in seen) == (ending == "filter")
    await check(stack, path, ending)


async def check(stack: Stack, path: str, ending: str) -> None:
    row = await stack.row()
    expected = EXPECTED[ending]
    assert (row.status, row.end_reason, row.http_status, row.accuracy) == (
        expected.status,
        expected.reason,
        expected.http_status,
        expected.accuracy,
    )
    assert row.route == path
    if ending != "refused":
        await stack.engine.until_finished()
    truth = stack.engine.truth
    if ending == "cut" and not row.stream:
        truth = TokenCounts()  # nothing of a whole answer that broke can be used
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (
        truth.prompt,
        truth.completion,
        truth.cached,
    )
    assert len(await stack.running.rows(1)) == 1
    assert all(upstream.in_flight == 0 for upstream in stack.gateway.pool.upstreams)
