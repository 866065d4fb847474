"""What servers of other makers write in their own way reaches the callers of every dialect whole, and the books."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_gateway.dialects.calls import CallReader
from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.testing.raw_server import RawServer, chunk, chunks_of, raw_server
from deepseek_gateway.testing.stack import RunningGateway, running_gateway

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
TURN: list[Any] = [{"role": "user", "content": "hi"}]
WORDS = [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}]


def called(name: str | None, call_id: str | None, arguments: object, **index: int) -> dict[str, Any]:
    """A delta of a tool call."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"tool_calls": [{**index, **({} if call_id is None else {"id": call_id}), "function": function}]}


@dataclass(frozen=True, slots=True)
class Walk:
    """One server, and the packages of two makers that ask it through a gateway."""

    server: RawServer
    running: RunningGateway
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    async def chat(self) -> list[Any]:
        """The chunks of a chat with usage."""
        wish: Any = {"include_usage": True}
        made = await self.openai.chat.completions.create(model="m", messages=TURN, stream=True, stream_options=wish)
        return [one async for one in made]

    async def message(self) -> anthropic.types.Message:
        """Anthropic's message, by its events."""
        async with self.anthropic.messages.stream(model="m", max_tokens=99, messages=TURN) as stream:
            kinds = [event.type async for event in stream]
            assert kinds[-1] == "message_stop"
            return await stream.get_final_message()

    async def response(self) -> Any:
        """OpenAI's response, out of the last event."""
        made = await self.openai.responses.create(model="m", input="hi", stream=True)
        events: list[Any] = [event async for event in made]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        return events[-1].response

    async def row(self, number: int = 1) -> LedgerRow:
        """The newest row of the ledger, once it has so many."""
        return (await self.running.rows(number))[-1]


@pytest.fixture
async def walk(state_dir: Path) -> AsyncIterator[Walk]:
    async with raw_server() as server:
        upstream = {"name": "other", "url": server.url, "kind": "openai", "models": ["m"]}
        async with running_gateway(state_dir, upstream) as running:
            key = running.key()
            async with (
                openai.AsyncOpenAI(api_key=key, base_url=f"{running.url}/v1", max_retries=0) as by_openai,
                anthropic.AsyncAnthropic(api_key=key, base_url=running.url, max_retries=0) as by_anthropic,
            ):
                yield Walk(server, running, by_openai, by_anthropic)


async def test_usage_that_comes_with_the_last_piece_ends_every_dialect_well(walk: Walk) -> None:
    walk.server.streams(*chunks_of(WORDS, usage=USAGE), DONE)
    chunks = await walk.chat()
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 7)
    message = await walk.message()
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 5, 2)
    response = await walk.response()
    assert (response.status, response.usage.total_tokens, response.output[0].content[0].text) == ("completed", 7, "ab")
    for row in await walk.running.rows(3):
        assert (row.end_reason, row.prompt_tokens, row.completion_tokens, row.accuracy) == ("stop", 5, 2, "exact")


SPACED: Any = {"separators": (", ", ": ")}
PLAIN = [*chunks_of(WORDS), chunk(None, usage=USAGE), DONE]
STREAMS: dict[str, list[bytes]] = {
    "as OpenAI's": PLAIN,
    "spaces": [
        *(chunk(word, **SPACED) for word in WORDS),
        chunk({}, "stop", **SPACED),
        chunk(None, usage=USAGE, **SPACED),
        DONE,
    ],
    "spaces, no [DONE]": [*(chunk(word, **SPACED) for word in WORDS), chunk({}, "stop", usage=USAGE, **SPACED)],
    "no [DONE]": PLAIN[:-1],
    "usage in every piece": [*(chunk(word, usage=USAGE) for word in WORDS), chunk({}, "stop", usage=USAGE), DONE],
    "usage is null at first": [*(chunk(word, usage=None) for word in WORDS), chunk({}, "stop"), *PLAIN[-2:]],
    "CRLF": [event.replace(b"\n", b"\r\n") for event in PLAIN],
    "CR": [event.replace(b"\n", b"\r") for event in PLAIN],
    "comments": [b": hello\n\n", *PLAIN[:2], b": still here\n\n", *PLAIN[2:]],
    "no choices at first": [chunk(None, prompt_filter_results=[]), *PLAIN],
    "names and ids": [b"event: message\nid: 1\n" + event for event in PLAIN],
    "no space after data": [event.replace(b"data: ", b"data:") for event in PLAIN],
    "the end has no delta": [
        *PLAIN[:3],
        chunk({}, "stop", usage=USAGE).replace(b'"delta":{}', b'"delta":null'),
        DONE,
    ],
    "more after [DONE]": [*PLAIN, chunk({"content": "never"}), DONE],
    "parts": [chunk({"content": [{"type": "text", "text": "ab"}]}), *PLAIN[3:]],
}


async def test_every_way_to_write_a_stream_is_read(walk: Walk) -> None:
    for number, (form, events) in enumerate(STREAMS.items(), 1):
        walk.server.streams(*events)
        chunks = await walk.chat()
        said = [piece.choices[0].delta.content for piece in chunks if piece.choices and piece.choices[0].delta]
        assert form == "parts" or "".join(text or "" for text in said) == "ab", form
        assert [piece.usage.total_tokens for piece in chunks if piece.usage] == [7], form
        message = await walk.message()
        assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 5, 2), (
            form
        )
        assert [block.text for block in message.content if block.type == "text"] == ["ab"], form
        response = await walk.response()
        assert (response.status, response.output_text, response.usage.total_tokens) == ("completed", "ab", 7), form
        for row in (await walk.running.rows(3 * number))[-3:]:
            assert (row.status, row.end_reason, row.accuracy) == ("finished", "stop", "exact"), form
            assert (row.prompt_tokens, row.completion_tokens) == (5, 2), form
            assert row.ttft_ms is not None, form


async def test_a_trailer_with_spaces_is_not_shown_to_who_did_not_ask(walk: Walk) -> None:
    walk.server.streams(*STREAMS["spaces"])
    made = await walk.openai.chat.completions.create(model="m", messages=TURN, stream=True)
    assert all(piece.choices and piece.usage is None for piece in [one async for one in made])


async def test_a_server_that_never_tells_usage_is_estimated_alike_for_caller_and_books(walk: Walk) -> None:
    walk.server.streams(*chunks_of(WORDS), DONE)
    chunks, message, response = await walk.chat(), await walk.message(), await walk.response()
    rows = await walk.running.rows(3)
    told = [chunks[-1].usage.prompt_tokens, message.usage.input_tokens, response.usage.input_tokens]
    assert [row.prompt_tokens for row in rows] == told
    assert chunks[-1].usage.completion_tokens == message.usage.output_tokens == response.usage.output_tokens == 2
    assert [(row.completion_tokens, row.accuracy) for row in rows] == [(2, "estimated")] * 3


async def test_an_answer_without_usage_is_estimated_by_its_text_alike(walk: Walk) -> None:
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m" * 3000}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "four little words here"},
        "finish_reason": "stop",
    }
    walk.server.says(json.dumps({**answer, "choices": [choice]}).encode(), kind=b"text/plain")
    chat = await walk.openai.chat.completions.create(model="m", messages=TURN)
    message = await walk.anthropic.messages.create(model="m", max_tokens=9, messages=TURN)
    assert chat.usage is not None
    assert 4 <= message.usage.output_tokens <= 12
    for row in await walk.running.rows(2):
        assert (row.completion_tokens, row.accuracy) == (message.usage.output_tokens, "estimated")
        assert row.completion_tokens == chat.usage.completion_tokens


CALLS = {
    "an index each": [
        called("f", "call_1", '{"a":', index=0),
        called(None, None, "1}", index=0),
        called("g", "call_2", "{}", index=1),
    ],
    "in turns": [
        called("f", "call_1", '{"a":', index=0),
        called("g", "call_2", "{", index=1),
        called(None, None, "1}", index=0),
        called(None, None, "}", index=1),
    ],
    "no index": [called("f", "call_1", '{"a":1}'), called("g", "call_2", "{}")],
    "0 for all": [called("f", "call_1", '{"a":1}', index=0), called("g", "call_2", "{}", index=0)],
    "the head in each": [
        called("f", "call_1", '{"a":', index=0),
        called("f", "call_1", "1}", index=0),
        called("g", "call_2", "{}", index=1),
    ],
    "an id in each": [
        called("f", "call_1", '{"a":', index=0),
        called(None, "call_9", "1}", index=0),
        called("g", "call_2", "{}", index=1),
    ],
    "objects": [called("f", "call_1", {"a": 1}, index=0), called("g", "call_2", {}, index=1)],
}


async def test_every_way_to_stream_tool_calls_gives_the_same_calls(walk: Walk) -> None:
    for form, deltas in CALLS.items():
        walk.server.streams(*chunks_of(deltas, finish="stop", usage=USAGE), DONE)  # `stop`, as if the tool was forced
        message = await walk.message()
        blocks: list[Any] = list(message.content)
        assert [(block.type, block.id, block.name, block.input) for block in blocks] == [
            ("tool_use", "call_1", "f", {"a": 1}),
            ("tool_use", "call_2", "g", {}),
        ], form
        assert message.stop_reason == "tool_use"
        items = (await walk.response()).output
        assert [(item.call_id, item.name, json.loads(item.arguments)) for item in items] == [
            ("call_1", "f", {"a": 1}),
            ("call_2", "g", {}),
        ], form


@settings(max_examples=30)
@given(st.data(), st.lists(st.dictionaries(st.text(max_size=2), st.text(max_size=3), max_size=2), max_size=3))
def test_calls_come_whole_one_after_another_in_any_order_of_pieces(data: st.DataObject, calls: list[dict]) -> None:
    rest = [json.dumps(call) for call in calls]
    begun: list[int] = []
    reader, given_out = CallReader(), list[Any]()
    while any(rest):
        at = data.draw(st.sampled_from([index for index, text in enumerate(rest) if text]))
        size = data.draw(st.integers(1, len(rest[at])))
        head = {} if at in begun else {"id": f"call_{at}"}
        function = {"arguments": rest[at][:size], **({} if at in begun else {"name": f"f{at}"})}
        begun += [] if at in begun else [at]
        rest[at] = rest[at][size:]
        given_out += reader.read([{"index": at, **head, "function": function}])
    given_out += reader.rest()
    assert [each.index for each in given_out] == sorted(each.index for each in given_out)
    for index, at in enumerate(begun):
        pieces = [each for each in given_out if each.index == index]
        assert (pieces[0].id, pieces[0].name) == (f"call_{at}", f"f{at}")
        assert all(piece.id is None and piece.name is None for piece in pieces[1:])
        assert json.loads("".join(piece.arguments for piece in pieces)) == calls[at]


ERRORS: dict[str, dict[str, Any]] = {
    "OpenAI's": {"error": {"message": "it broke", "type": "server_error", "code": 500}},
    "with choices, as OpenRouter's": {"error": {"message": "it broke", "code": 502}, "choices": [{"delta": {}}]},
    "a text, as TGI's": {"error": "it broke", "error_type": "generation"},
    "old vLLM's": {"object": "error", "message": "it broke", "type": "InternalServerError", "code": 500},
}


async def test_every_way_to_tell_of_an_error_fails_a_stream(walk: Walk) -> None:
    for number, (form, body) in enumerate(ERRORS.items(), 1):
        error = json.dumps(body, separators=(",", ":") if form.startswith("a text") else None)
        walk.server.streams(chunk({"content": "a"}), b"data: " + error.encode() + b"\n\n", DONE)
        with pytest.raises(openai.APIError, match="it broke"):
            await walk.chat()
        with pytest.raises(anthropic.APIStatusError, match="it broke"):
            await walk.message()
        made = await walk.openai.responses.create(model="m", input="hi", stream=True)
        events: list[Any] = [event async for event in made]
        assert [event.type for event in events].count("error") == 1, form
        assert (events[-1].type, events[-1].response.error.message) == ("response.failed", "it broke"), form
        for row in (await walk.running.rows(3 * number))[-3:]:
            assert (row.status, row.end_reason) == ("failed", "upstream_error"), form


REFUSALS: dict[str, tuple[bytes, str, str | None]] = {
    "OpenAI's": (b'{"error": {"message": "no such thing", "param": "x"}}', "no such thing", "x"),
    "a text, as Ollama's": (b'{"error": "no such thing"}', "no such thing", None),
    "old vLLM's": (b'{"object": "error", "message": "no such thing", "code": 400}', "no such thing", None),
    "FastAPI's": (b'{"detail": "no such thing"}', "no such thing", None),
    "FastAPI's of a field": (
        b'{"detail": [{"loc": ["body", "messages", 0], "msg": "no such thing"}]}',
        "messages.0: no such thing",
        "messages.0",
    ),
    "plain": (b"no such thing", "no such thing", None),
    "a page": (b"<html><h1>nginx at 10.0.0.7</h1></html>", "answers 400 and does not say why", None),
}


@pytest.mark.parametrize("stream", [False, True])
async def test_every_way_to_refuse_has_the_dialects_shape(walk: Walk, stream: bool) -> None:
    for body, message, param in REFUSALS.values():
        walk.server.says(body, b"400 Bad Request", b"text/html")
        with pytest.raises(openai.BadRequestError, match=message) as refused:
            await walk.openai.chat.completions.create(model="m", messages=TURN, stream=stream)
        assert refused.value.param == param
        assert refused.value.response.headers["content-type"] == "application/json"
        assert b"10.0.0.7" not in refused.value.response.content
        with pytest.raises(anthropic.BadRequestError, match=message) as told:
            await walk.anthropic.messages.create(model="m", max_tokens=9, messages=TURN, stream=stream)
        assert isinstance(told.value.body, dict)
        assert told.value.body["error"]["type"] == "invalid_request_error"
        assert (await walk.row(2)).end_reason == "rejected"


async def test_what_is_no_answer_is_an_error_that_costs_nothing(walk: Walk) -> None:
    bodies = (b"<html>sign in</html>", b"", b'{"error": {"message": "busy"}}', b"[1]")
    for body in bodies:
        walk.server.says(body, kind=b"text/html")
        with pytest.raises(openai.InternalServerError) as failed:
            await walk.openai.chat.completions.create(model="m", messages=TURN)
        assert failed.value.status_code == 502
    with pytest.raises(anthropic.InternalServerError):
        await walk.anthropic.messages.create(model="m", max_tokens=9, messages=TURN)
    for row in await walk.running.rows(len(bodies) + 1):
        assert (row.status, row.http_status, row.prompt_tokens, row.completion_tokens) == ("failed", 502, 0, 0)


async def test_a_number_that_json_does_not_have_is_no_number(walk: Walk) -> None:
    broken = chunk({"content": "a"}).replace(b'"index":0', b'"index":0,"logprobs":{"x":NaN}')
    walk.server.streams(broken, *PLAIN[2:])
    assert (await walk.response()).output_text == "ab"
    assert (await walk.message()).stop_reason == "end_turn"
