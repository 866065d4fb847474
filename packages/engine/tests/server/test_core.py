"""The server over a real core process (fake runner): callers that leave in any state, exact counters, a killed core."""

import asyncio
import json
import random

import httpx
import pytest

from deepseek_engine.server.record import CLIENT_GONE

BUSY = 8  # places in the batch of the `core` fixture


def _is_idle(server) -> bool:
    stats = server.engine.stats
    return (
        server.num_running == 0
        and stats.num_free_blocks == stats.num_blocks
        and not stats.num_running + stats.num_waiting
    )


async def _send(server, *, stream: bool, request_id: str = "x", **body) -> asyncio.StreamWriter:
    payload = json.dumps({"prompt": "Tell me a story", "stream": stream, "ignore_eos": True, **body}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    head = (
        f"POST /v1/generate HTTP/1.1\r\nhost: x\r\nx-request-id: {request_id}\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    writer.write(head.encode() + payload)
    await writer.drain()
    return writer


SLOW = "step_s=0.01"
"""A full batch of long answers then runs for nine seconds: for longer than a busy machine needs to look at it."""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("state", ["just sent", "waiting", "prefill", "decode"])
async def test_a_caller_that_leaves_in_any_state_frees_its_blocks(start_core, stream, state):
    core = await start_core(fake=SLOW)
    writers = []
    if state == "waiting":
        writers = [await _send(core, stream=True, max_tokens=900) for _ in range(BUSY)]
        await core.eventually(lambda: core.engine.stats.num_running == BUSY)
    long = "word " * 700 if state == "prefill" else "Tell me a story"
    writers.append(await _send(core, stream=stream, prompt=long, max_tokens=200))
    match state:
        case "waiting":
            await core.eventually(lambda: core.engine.stats.num_waiting == 1)
        case "prefill":
            await core.eventually(lambda: core.num_running == 1)
        case "decode":
            steps = core.engine.stats.num_steps
            await core.eventually(lambda: core.engine.stats.num_steps > steps + 5)
        case _:
            pass
    for writer in reversed(writers):
        writer.close()
    await core.eventually(lambda: _is_idle(core))


async def test_leaving_takes_effect_long_before_the_answer_would_end(start_core):
    core = await start_core(fake=SLOW)
    writer = await _send(core, stream=True, max_tokens=900)
    await core.eventually(lambda: core.engine.stats.num_steps > 5)
    writer.close()
    steps = core.engine.stats.num_steps
    await core.eventually(lambda: _is_idle(core))
    assert core.engine.stats.num_steps - steps < 450, "of the 900 that were asked for"


async def test_counters_equal_the_reported_usage_whatever_becomes_of_the_requests(core):
    rng = random.Random(5)
    logged: list[tuple[int, int]] = []

    async def one(number: int) -> None:
        name = f"r{number}"
        body = {"prompt": "Count to ten " * rng.randint(1, 20), "max_tokens": rng.randint(1, 60), "ignore_eos": True}
        fate = rng.choice(["stream", "whole", "abort", "stop"])
        if fate == "stop":
            body |= {"stop": [" ", "e"]}
        if fate == "whole":
            response = await core.client.post("/v1/generate", json=body, headers={"x-request-id": name})
            usage = response.json()["usage"]
        else:
            async with core.stream("/v1/generate", headers={"x-request-id": name}, **body) as reader:
                if fate == "abort":
                    await core.client.post(f"/v1/requests/{name}/abort")
                usage = (await reader.rest())[-1]["usage"]
        logged.append((usage["prompt_tokens"], usage["completion_tokens"]))

    await asyncio.gather(*(one(number) for number in range(60)))
    assert len(logged) == 60
    await core.eventually(lambda: _is_idle(core))
    assert await core.metric("deepseek_engine_prompt_tokens_total") == sum(prompt for prompt, _ in logged)
    assert await core.metric("deepseek_engine_generation_tokens_total") == sum(tokens for _, tokens in logged)


async def test_every_request_has_one_access_line_with_random_leavers(core, caplog):
    rng = random.Random(7)

    async def one(number: int) -> None:
        writer = await _send(core, stream=number % 2 == 0, request_id=f"line-{number}", max_tokens=40)
        await asyncio.sleep(rng.random() * 0.1)  # anywhere in its life
        writer.close()

    with caplog.at_level("INFO", logger="deepseek_engine.access"):
        await asyncio.gather(*(one(number) for number in range(40)))
        lines = lambda: [r.getMessage() for r in caplog.records if "id=line-" in r.getMessage()]  # noqa: E731
        await core.eventually(lambda: len(lines()) >= 40 and _is_idle(core))
    assert sorted(line.split()[0] for line in lines()) == sorted(f"id=line-{number}" for number in range(40))
    assert any(f"status={CLIENT_GONE}" in line for line in lines())


@pytest.mark.parametrize("stream", [True, False])
async def test_a_deadline_ends_the_answer_as_it_is_with_its_usage(core, caplog, stream):
    body = {"prompt": "Hi", "max_tokens": 900, "ignore_eos": True, "deadline_s": 1.0}
    with caplog.at_level("INFO", logger="deepseek_engine.access"):
        if stream:
            async with core.stream("/v1/generate", **body) as reader:
                last = (await reader.rest())[-1]
        else:
            response = await core.post("/v1/generate", **body)
            assert response.status_code == 200
            last = response.json()
        assert last["finish_reason"] == "abort"
        assert 0 < last["usage"]["completion_tokens"] < 900
        await core.eventually(lambda: "finish_reason=timeout" in caplog.text)
    await core.eventually(lambda: _is_idle(core))


async def test_a_servers_own_limit_of_time_holds_for_requests_that_ask_for_more_or_for_none(start_core):
    server = await start_core(max_deadline_s=0.2)
    for asked in ({}, {"deadline_s": 50}):
        answer = (await server.post("/v1/generate", prompt="Hi", max_tokens=900, ignore_eos=True, **asked)).json()
        assert answer["finish_reason"] == "abort"


async def test_an_urgent_request_overtakes_those_that_wait(start_core):
    server = await start_core(fake=SLOW, min_priority=-5)
    writers = [await _send(server, stream=True, max_tokens=900) for _ in range(BUSY)]
    await server.eventually(lambda: server.engine.stats.num_running == BUSY)
    ended: list[str] = []

    async def ask(name: str, priority: int) -> None:
        await server.post("/v1/generate", prompt="Hi", max_tokens=1, priority=priority)
        ended.append(name)

    async with asyncio.TaskGroup() as group:
        for number, (name, priority) in enumerate((("later", 5), ("usual", 0), ("urgent", -5)), start=1):
            group.create_task(ask(name, priority))
            await server.eventually(lambda number=number: server.engine.stats.num_waiting == number)
        writers[0].close()  # makes one place; the others go on
    assert ended == ["urgent", "usual", "later"]
    for writer in writers[1:]:
        writer.close()
    await server.eventually(lambda: _is_idle(server))


async def test_the_same_prompt_gives_the_same_text_streamed_or_not_alone_or_together(core):
    body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    alone = (await core.post("/v1/generate", **body)).json()["text"]

    async def streamed() -> str:
        async with core.stream("/v1/generate", **body) as reader:
            return "".join(event["text"] for event in await reader.rest())

    assert set(await asyncio.gather(*(streamed() for _ in range(12)))) == {alone}


async def test_a_killed_core_ends_running_requests_and_the_process(core):
    async with core.stream("/v1/generate", prompt="Hi", max_tokens=900, ignore_eos=True) as reader:
        await reader.next()
        core.engine._process.kill()
        while (event := await reader.next_event()).event == "message":
            pass
    assert event.event == "error"
    assert "core" in json.loads(event.data)["error"]["message"]
    assert await core.exit_status == 1
