"""Deltas that have waited become one event: nothing of an answer is lost, doubled or put in another order by it."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deepseek_client.sse import SSEParser
from deepseek_engine.chat.template_encoder import TemplateEncoder
from deepseek_engine.chat_template import ChatTemplate
from deepseek_engine.messages import Delta, TokenLogprobs, TopLogprob
from deepseek_engine.server.joined_deltas import join_deltas
from deepseek_engine.testing.fake_runner import expected_tokens
from deepseek_engine.text_parsers.markup import FORMATS
from deepseek_engine.tokenizer import Tokenizer

CHAT, GENERATE, COMPLETIONS = "/v1/chat/completions", "/v1/generate", "/v1/completions"
VOCAB_SIZE = 49152  # of the fake runner, as the fixtures start it

TEXT = "So 世界 is it 😀, and STOP after that it goes on."
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}<think>\n"
CALL = 'I look. So.</think>Look: <tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, "x\\n"]}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CASES = [
    (GENERATE, TEXT, {"prompt": "Hi"}),
    (GENERATE, TEXT, {"prompt": "Hi", "stop": ["STOP", "never"], "return_token_ids": True}),
    (COMPLETIONS, TEXT, {"prompt": "Hi", "n": 3, "return_token_ids": True, "stop": ["goes"]}),
    (COMPLETIONS, TEXT, {"prompt": ["Hi", "Ho"], "n": 2, "logprobs": 2}),
    (COMPLETIONS, TEXT, {"prompt": "Hi", "stream_options": {"continuous_usage_stats": True, "include_usage": True}}),
    (CHAT, TEXT, {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 1}),
    (CHAT, CALL, {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "logprobs": True}),
    (CHAT, TEXT, {"messages": [{"role": "user", "content": "Hi"}], "n": 2}),
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """SmolLM2's vocabulary with a template that leaves the model thinking, and knows tools."""
    encoder = TemplateEncoder(ChatTemplate(TEMPLATE), FORMATS["qwen3"])
    return Tokenizer(tokenizer._backend, eos_token_ids=tokenizer.eos_token_ids, chat_encoder=encoder)


@pytest.mark.parametrize(("path", "text", "body"), CASES)
async def test_an_answer_is_the_same_however_its_steps_came_together(scripted, tokenizer, path, text, body):
    server = await scripted()
    rng = random.Random(repr(body))
    options = {"include_usage": True, **body.get("stream_options", {})}
    answers: list[tuple[dict[int, dict[str, Any]], dict[str, Any]]] = []
    num_events: list[int] = []
    for longest in (1, 9, 1000):
        before = len(server.engine.submits)
        opening = asyncio.create_task(_read(server, path, {**body, "stream_options": options}))
        num_prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
        await server.eventually(lambda n=num_prompts, b=before: len(server.engine.submits) == b + n)
        for submit in server.engine.submits[before:]:
            _play_in_lumps(server.engine, submit, tokenizer.encode(text), longest, rng)
        events = await opening
        answers.append((_joined(events), events[-1]["usage"]))
        num_events.append(len(events))
    assert answers[0] == answers[1] == answers[2]
    assert num_events[0] > num_events[1] > num_events[2]
    assert [bool(choice["calls"]) for choice in answers[0][0].values()] == ["tools" in body] * len(answers[0][0])


async def _read(server, path: str, body: dict[str, Any]) -> list[Any]:
    async with server.stream(path, **body) as reader:
        return await reader.rest()


def _play_in_lumps(engine, submit, ids: list[int], longest: int, rng: random.Random) -> None:
    """Say the tokens of each answer in turns; up to so many deltas come together."""
    num = len(submit.prompt_token_ids)

    def delta(index: int, *token_ids: int, **rest: Any) -> Delta:
        logprobs = None
        if submit.params.logprobs is not None and token_ids:
            logprobs = tuple(TokenLogprobs(-i / 7, (TopLogprob(i, -i / 7), TopLogprob(0, -9.0))) for i in token_ids)
        return Delta(
            request_id=submit.request_id, index=index, token_ids=token_ids, logprobs=logprobs, num_prompt_tokens=num,
            num_cached_tokens=1, **rest,
        )  # fmt: skip

    answers = range(submit.params.n)
    deltas = [delta(index, token_id) for token_id in ids for index in answers]
    deltas += [delta(index, 2, finish_reason="stop", stop_token_id=2) for index in answers]
    stream = engine.streams[submit.request_id]
    while deltas:
        size = rng.randint(1, longest)
        stream.queue.put_nowait(deltas[:size])
        deltas = deltas[size:]
    stream.num_unfinished = 0
    stream.queue.put_nowait(None)


def _joined(events: list[Any]) -> dict[int, dict[str, Any]]:
    """What a caller has of each choice at the end."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event.get("choices", [event]):
            so_far = choices.setdefault(choice.get("index", 0), {"calls": {}})
            assert "finish_reason" not in so_far, "an event after the last one"
            for key, value in (choice | choice.get("delta", {})).items():
                if key == "logprobs":
                    for name, entries in value.items():
                        so_far[f"logprobs.{name}"] = so_far.get(f"logprobs.{name}", []) + entries
                elif key in ("text", "content", "reasoning_content", "token_ids"):
                    so_far[key] = so_far[key] + value if key in so_far else value
                elif key == "finish_reason" and value is not None:
                    so_far[key] = value
            for call in choice.get("delta", {}).get("tool_calls", ()):
                made = so_far["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                made["name"] += call["function"].get("name", "")
                made["arguments"] += call["function"]["arguments"]
    return choices


async def test_a_reader_who_is_slow_is_waited_for_and_then_gets_all_that_came_in_one_event(
    scripted, tokenizer, tmp_path
):
    path = str(tmp_path / "socket")
    server = await scripted(uds=path)
    body = {"prompt": "Hi", "stream": True, "return_token_ids": True}
    said = tokenizer.encode("All that is said before the connection is full. ") * 20
    late = tokenizer.encode("世界, and all that waits then: 😀.")
    async with _connected(path) as reader:
        await _ask(reader, COMPLETIONS, body)
        await server.eventually(lambda: len(server.engine.submits) == 1)
        (submit,) = server.engine.submits
        queue = server.engine.streams[submit.request_id].queue
        (connection,) = server.lifecycle._server.server_state.connections
        num_said = 0
        while not connection.flow.write_paused:
            server.engine.emit(submit.request_id, tuple(said))
            num_said += 1
            await server.eventually(queue.empty)
            await asyncio.sleep(0)
        server.engine.emit(submit.request_id, (late[0],))
        await server.eventually(queue.empty)  # taken, rendered, and held up
        num_buffered = connection.transport.get_write_buffer_size()
        deltas = [Delta(request_id=submit.request_id, token_ids=(i,), num_prompt_tokens=1) for i in late[1:]]
        deltas.append(Delta(request_id=submit.request_id, finish_reason="length", num_prompt_tokens=1))
        queue.put_nowait(deltas)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not queue.empty(), "nothing more is taken"
        assert connection.transport.get_write_buffer_size() == num_buffered < 2**17, "nothing more is written"
        choices = [choice for chunk in _events_of(await _read_all(reader)) for choice in chunk["choices"]]
    assert [choice["token_ids"] for choice in choices] == [said] * num_said + [late[:1], late[1:]]
    assert "".join(choice["text"] for choice in choices) == tokenizer.decode(said * num_said + late)
    assert [choice["finish_reason"] for choice in choices] == [None] * (num_said + 1) + ["length"]


async def test_who_reads_late_gets_every_token_of_a_real_core(start_core, tokenizer, tmp_path):
    path = str(tmp_path / "socket")
    server = await start_core(fake="step_s=0", uds=path)
    prompt, num_tokens = tokenizer.encode("Tell me all of it"), 950
    body = {
        "prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0, "stream": True, "logprobs": 1,
        "return_token_ids": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    async with _connected(path) as reader:
        await _ask(reader, COMPLETIONS, body)
        await server.eventually(lambda: server.engine.stats.num_steps >= num_tokens)
        await server.eventually(lambda: server.engine.stats.num_running == 0)
        *chunks, last = _events_of(await _read_all(reader))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ids = [token_id for choice in choices for token_id in choice["token_ids"]]
    assert ids == expected_tokens(prompt, num_tokens, vocab_size=VOCAB_SIZE)
    assert "".join(choice["text"] for choice in choices) == tokenizer.decode(ids)
    logprobs = [entry for choice in choices for entry in choice["logprobs"]["token_logprobs"]]
    assert logprobs == [max(-float(token_id), -9999.0) for token_id in ids]
    assert last["usage"]["completion_tokens"] == num_tokens
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]


@asynccontextmanager
async def _connected(path: str) -> AsyncGenerator[socket.socket]:
    """A connection that nobody reads before the test does."""
    with socket.socket(socket.AF_UNIX) as reader:
        reader.setblocking(False)
        await asyncio.get_running_loop().sock_connect(reader, path)
        yield reader


async def _ask(reader: socket.socket, path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(reader, head.encode() + content)


async def _read_all(reader: socket.socket) -> bytes:
    raw = b""
    async with asyncio.timeout(10):
        while data := await asyncio.get_running_loop().sock_recv(reader, 2**16):
            raw += data
    return raw


def _events_of(raw: bytes) -> list[Any]:
    """The JSON of a chunked answer's events, which end with `[DONE]`."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert b"200" in head.splitlines()[0]
    content = b""
    while size := int(rest.partition(b"\r\n")[0], 16):
        content += (rest := rest.partition(b"\r\n")[2])[:size]
        rest = rest[size + 2 :]
    *events, done = [event.data for event in SSEParser().feed(content)]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def test_what_is_read_off_a_prompt_stays_apart_and_in_its_place():
    entry = TokenLogprobs(-1.0)
    deltas = [
        Delta(request_id="a", prompt_logprobs=(entry,)),
        Delta(request_id="a", index=1, token_ids=(1,), num_prompt_tokens=4),
        Delta(request_id="a", index=0, token_ids=(2,), num_prompt_tokens=4),
        Delta(request_id="a", index=1, token_ids=(3,), num_prompt_tokens=4, num_reasoning_tokens=1),
        Delta(request_id="a", prompt_logprobs=(entry, entry)),
        Delta(request_id="a", index=1, finish_reason="abort", num_prompt_tokens=4, num_preemptions=2),
    ]
    joined = join_deltas(deltas)
    assert [(delta.index, delta.token_ids, len(delta.prompt_logprobs)) for delta in joined] == [
        (0, (), 1), (1, (1, 3), 0), (0, (2,), 0), (0, (), 2), (1, (), 0),
    ]  # fmt: skip
    assert joined[1].num_reasoning_tokens == 1
    assert joined[-1] is deltas[-1]
