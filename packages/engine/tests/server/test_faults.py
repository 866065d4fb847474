"""Every request ends in exactly one way and with one line, whatever fails; and operators see what failed."""

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import pytest

from deepseek_engine.core_watch import CoreVitals

METRICS_PAGE = Path(__file__).parents[4] / "docs/engine/metrics.md"
POISON, HANG, DIE = " poison", " hang", " die"


@pytest.fixture(autouse=True)
def access_lines(caplog):
    caplog.set_level("INFO", logger="deepseek_engine.access")


def poisoned(tokenizer, **faults: str) -> str:
    """Options of the fake runner by which a word of the prompt does harm."""
    options = []
    for name, word in faults.items():
        (token_id,) = tokenizer.encode(word)
        options.append(f"{name}={token_id}")
    return "&".join(["step_s=0.002", *options])


def lines(caplog, request_id: str) -> list[dict[str, str]]:
    """The access lines of a request, each as its fields."""
    messages = [record.getMessage() for record in caplog.records if record.name == "deepseek_engine.access"]
    parsed = [dict(part.split("=", 1) for part in message.split()) for message in messages]
    return [line for line in parsed if line["id"] == request_id]


async def logged(server, caplog, request_id: str) -> dict[str, str]:
    """The one access line of a request, which may follow its answer."""
    await server.eventually(lambda: server.num_running == 0 and lines(caplog, request_id))
    (line,) = lines(caplog, request_id)
    return line


async def ask(server, request_id: str, prompt: str, *, stream: bool, **body) -> tuple[int, dict]:
    """Status and answer, or the error, of one request."""
    body = {"prompt": prompt, "max_tokens": 30, "ignore_eos": True, "raw": True, **body}
    headers = {"x-request-id": request_id}
    if not stream:
        response = await server.client.post("/v1/generate", json=body, headers=headers)
        return response.status_code, response.json()
    async with server.stream("/v1/generate", headers=headers, **body) as reader:
        if reader.response.status_code != 200:
            return reader.response.status_code, json.loads(await reader.response.aread())
        last: dict = {}
        while (event := await reader.next_event()).data != "[DONE]":
            last = json.loads(event.data)
            if event.event == "error":
                break
        return 200, last


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_cannot_be_computed_fails_alone(start_core, tokenizer, caplog, stream):
    server = await start_core(fake=poisoned(tokenizer, fail_token=POISON))
    bad, *good = await asyncio.gather(
        ask(server, "bad", f"this is{POISON}", stream=stream),
        *(ask(server, f"good-{number}", f"number {number}", stream=stream) for number in range(6)),
    )
    status, error = bad
    assert "breaks this model" in error["error"]["message"]
    assert status == 500, "nothing had been sent yet"
    assert {status for status, _ in good} == {200}
    assert {answer["finish_reason"] for _, answer in good} == {"length"}
    line = await logged(server, caplog, "bad")
    assert (line["status"], line["finish_reason"]) == ("500", "error")
    assert all([await logged(server, caplog, f"good-{number}") for number in range(6)])
    assert await server.metric("deepseek_engine_failed_steps_total") == 1
    assert await server.metric("deepseek_engine_requests_total", status="500", finish="error") == 1


async def test_a_lack_of_memory_shows_in_metrics_and_in_no_answer(start_core, tokenizer, caplog):
    plenty = await start_core()
    little = await start_core(fake="memory_tokens=3")
    prompts = [f"number {number} of many" for number in range(6)]
    answers = [
        await asyncio.gather(
            *(ask(server, f"{name}-{i}", p, stream=True, temperature=0) for i, p in enumerate(prompts))
        )
        for name, server in (("plenty", plenty), ("little", little))
    ]
    usage = [[(status, answer["finish_reason"], answer["usage"]) for status, answer in each] for each in answers]
    assert usage[0] == usage[1]
    assert await little.metric("deepseek_engine_oom_events_total") > 0
    assert await little.metric("deepseek_engine_failed_steps_total") == 0
    assert await little.metric("deepseek_engine_step_token_budget") < 2048
    assert all([await logged(little, caplog, f"little-{i}") for i in range(6)])
    assert await plenty.metric("deepseek_engine_oom_events_total") == 0


@pytest.mark.parametrize("cause", ["killed", "hangs", "dies"])
async def test_a_core_that_ends_ends_every_request_with_one_line_and_the_server(start_core, tokenizer, caplog, cause):
    server = await start_core(
        fake=poisoned(tokenizer, hang_token=HANG, die_token=DIE),
        engine={"step_timeout_s": 0.2, "step_exit_s": 0.5, "heartbeat_s": 0.05},
    )
    asking = [
        asyncio.create_task(ask(server, f"r{number}", "a story", stream=number % 2 == 0, max_tokens=900))
        for number in range(4)
    ]
    await server.eventually(lambda: server.engine.stats.num_running == 4)
    if cause == "killed":
        server.engine._process.kill()
    else:
        word = HANG if cause == "hangs" else DIE
        asking.append(asyncio.create_task(ask(server, "r4", f"now{word}", stream=True)))
    for status, answer in await asyncio.gather(*asking):
        assert "the engine core" in answer["error"]["message"]
        assert status in (200, 503)
    for number in range(len(asking)):
        line = await logged(server, caplog, f"r{number}")
        assert (line["status"], line["finish_reason"]) == ("503", "error")
    assert await server.exit_status == 1


async def test_while_the_server_drains_every_request_ends_with_one_line(start_core, caplog):
    server = await start_core(drain_timeout_s=0.05)
    asking = [
        asyncio.create_task(ask(server, f"r{number}", "a story", stream=number % 2 == 0, max_tokens=900))
        for number in range(4)
    ]
    await server.eventually(lambda: server.engine.stats.num_running == 4)
    server.lifecycle.request_stop()
    for status, answer in await asyncio.gather(*asking):
        assert (status, answer["finish_reason"]) == (200, "abort")
    assert await server.exit_status == 0
    for number in range(4):
        line = await logged(server, caplog, f"r{number}")
        assert (line["status"], line["finish_reason"]) == ("200", "abort")


async def test_ready_says_no_while_the_core_is_in_trouble_and_requests_are_still_taken(scripted):
    server = await scripted("Hello")
    assert (await server.client.get("/ready")).status_code == 200
    assert await server.metric("deepseek_engine_core_healthy") == 1
    server.engine.vitals = CoreVitals(silence_s=7.0, trouble="the engine core has not been heard of for 7.0 s")
    response = await server.client.get("/ready")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert "not been heard of for 7.0 s" in response.json()["error"]["message"]
    assert await server.metric("deepseek_engine_core_healthy") == 0
    assert await server.metric("deepseek_engine_core_silence_seconds") == 7
    assert (await server.client.get("/health")).status_code == 200
    assert (await server.post("/v1/generate", prompt="Hi", max_tokens=3)).status_code == 200


async def test_a_core_that_is_gone_is_not_healthy(start_core):
    server = await start_core(core_death_grace_s=5.0)
    assert await server.metric("deepseek_engine_core_healthy") == 1
    server.engine._process.kill()
    await server.eventually(lambda: not server.engine.is_alive)
    assert await server.metric("deepseek_engine_core_healthy") == 0
    assert (await server.client.get("/ready")).status_code == 503


async def test_a_signal_has_the_server_and_its_core_write_their_state(scripted, caplog, capfd):
    server = await scripted("Hello")
    caplog.set_level("ERROR")
    os.kill(os.getpid(), signal.SIGUSR1)
    await server.eventually(lambda: server.engine.num_dumps_asked_for == 1)
    assert "state of the server: 0 requests are being answered" in caplog.text
    assert "lifecycle.py" in capfd.readouterr().err


async def test_every_metric_is_documented_and_every_documented_metric_exists(start_core, caplog):
    server = await start_core(engine={"heartbeat_s": 0.05})
    await server.post("/v1/generate", prompt="Hi", max_tokens=3)
    await server.eventually(lambda: bool(server.engine.vitals.heartbeat.steps.kinds))
    server.state.metrics.count_adapter("a")
    server.state.metrics.watch_request_log(lambda: 0)
    exposed = set(re.findall(r"^# TYPE (\S+) ", (await server.client.get("/metrics")).text, re.MULTILINE))
    exposed = {name for name in exposed if not name.endswith("_created")}
    documented = set(re.findall(r"^\| `([a-z_]+)", METRICS_PAGE.read_text(), re.MULTILINE))
    assert exposed == documented


async def test_steps_and_queues_show_in_metrics(start_core):
    server = await start_core(engine={"heartbeat_s": 0.05})
    await server.post("/v1/generate", prompt="a long enough prompt " * 8, max_tokens=5, ignore_eos=True)
    await server.post("/v1/generate", prompt="a long enough prompt " * 8, max_tokens=5, ignore_eos=True)
    steps = lambda: server.engine.vitals.heartbeat.steps.kinds  # noqa: E731
    await server.eventually(lambda: "decode" in steps() and sum(steps()["decode"].num_steps_in) == 8)
    assert await server.metric("deepseek_engine_queue_seconds_count") == 2
    assert await server.metric("deepseek_engine_step_seconds_count", kind="decode") == 8
    assert await server.metric("deepseek_engine_step_seconds_bucket", kind="decode", le="+Inf") == 8
    assert await server.metric("deepseek_engine_step_tokens_total", kind="decode") == 8
    assert await server.metric("deepseek_engine_step_phase_seconds_total", phase="forward") > 0
    queries = await server.metric("deepseek_engine_prefix_query_tokens_total")
    assert 0 < await server.metric("deepseek_engine_prefix_hit_tokens_total") < queries
    assert await server.metric("deepseek_engine_core_resident_memory_bytes") > 1e6
    assert await server.metric("process_resident_memory_bytes") > 1e6
