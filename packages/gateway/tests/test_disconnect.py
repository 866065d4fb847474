"""A caller that leaves, at every stage: the engine stops at once, and the bill is exact."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from deepseek_gateway.testing.caller import next_event, until
from deepseek_gateway.testing.stack import Stack, running_stack


async def leave(stack: Stack, body: dict, *, after_events: int = 0) -> None:
    """Send a request and close its connection after some events, once the engine has it."""
    task = asyncio.current_task()
    assert task is not None

    async def ask() -> None:
        async with stack.caller.open("/v1/generate", body) as answer:
            for _ in range(after_events):
                await next_event(answer)
            answer.close()

    if after_events:
        await ask()
        return
    asking = asyncio.create_task(ask())
    await stack.engine.until_running()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_leaving_a_stream_ends_it_at_the_engine_and_bills_what_was_done(stack: Stack) -> None:
    stack.engine.allow(3)
    body = {"prompt": "a b", "stream": True, "fake": {"tokens": 100, "gated": True, "cached_tokens": 1}}
    await leave(stack, body, after_events=3)
    row = await stack.row()
    (done,) = stack.engine.finished
    assert done.finish == "abort"
    assert (row.status, row.end_reason, row.http_status, row.accuracy) == (
        "cancelled",
        "client_disconnect",
        499,
        "exact",
    )
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (2, 3, 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_before_the_request_began_costs_nothing(stack: Stack, stream: bool) -> None:
    await leave(stack, {"prompt": "a b", "stream": stream, "fake": {"queued": True}})
    row = await stack.row()
    assert (row.status, row.prompt_tokens, row.completion_tokens, row.accuracy) == ("cancelled", 0, 0, "exact")
    assert stack.engine.finished[0].finish == "abort"


async def test_leaving_an_unstreamed_answer_bills_what_was_done(stack: Stack) -> None:
    body = {"prompt": "a b", "fake": {"tokens": 100, "gated": True}}
    stack.engine.allow(4)
    asking = asyncio.create_task(stack.caller.post(body=body))
    await until(lambda: any(job.num_sent == 4 for job in stack.engine.running.values()))
    asking.cancel()
    row = await stack.row()
    assert (row.status, row.prompt_tokens, row.completion_tokens, row.accuracy) == ("cancelled", 2, 4, "exact")


async def test_the_connection_of_an_aborted_request_is_used_again(stack: Stack) -> None:
    stack.engine.allow(1)
    await leave(stack, {"prompt": "a", "stream": True, "fake": {"tokens": 9, "gated": True}}, after_events=1)
    await stack.row()
    before = len(stack.served.server.server_state.connections)
    await stack.caller.post()
    assert len(stack.served.server.server_state.connections) == before


async def test_an_engine_that_knows_no_abort_is_cut_off_and_its_bill_is_estimated(stack: Stack) -> None:
    stack.engine.allow(3)
    body = {"prompt": "a b", "stream": True, "fake": {"tokens": 100, "gated": True, "deaf": True}}
    await leave(stack, body, after_events=3)
    row = await stack.row()
    assert (row.completion_tokens, row.accuracy) == (3, "estimated")
    await stack.engine.until_finished()
    assert stack.engine.finished[0].finish == "disconnect"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_knows_no_abort_is_cut_off_before_it_answers_too(stack: Stack, stream: bool) -> None:
    await leave(stack, {"prompt": "a b", "stream": stream, "fake": {"queued": True, "deaf": True}})
    row = await stack.row()
    assert (row.status, row.completion_tokens, row.accuracy) == ("cancelled", 0, "estimated")
    await stack.engine.until_finished()


async def test_an_aborted_request_that_never_ends_is_given_up(state_dir: Path, monkeypatch) -> None:
    async with running_stack(state_dir, abort_drain_s=0.1) as stack:
        monkeypatch.setattr("deepseek_gateway.testing.fake_engine.Job.end", lambda job, reason: None)
        stack.engine.allow(2)
        body = {"prompt": "a b", "stream": True, "fake": {"tokens": 9, "gated": True}}
        await leave(stack, body, after_events=2)
        row = await stack.row()
        assert (row.completion_tokens, row.accuracy) == (2, "estimated")
        monkeypatch.undo()
        for job in list(stack.engine.running.values()):
            job.end("test over")


async def test_a_caller_that_does_not_read_holds_back_the_engine_and_is_cut(state_dir: Path) -> None:
    async with running_stack(state_dir, send_timeout_s=0.6, keep_alive_s=0.5) as stack:
        body = {"prompt": "a", "stream": True, "fake": {"tokens": 2000, "word_bytes": 20_000}}
        async with stack.caller.open("/v1/generate", body) as answer:
            answer.connection.transport.pause_reading()
            await until(lambda: stack.gateway.running == 0)
            answer.close()
        row = await stack.row()
        assert (row.status, row.end_reason, row.accuracy) == ("cancelled", "slow_client", "exact")
        # 40 MB were asked for; what left the engine is what fits into the buffers on the way.
        assert row.completion_tokens < 1000


async def test_callers_that_leave_while_sending_their_body_leave_no_trace(stack: Stack) -> None:
    host, port = stack.running.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/generate HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.caller.key}\r\n"
    writer.write(f"{head}content-length: 100\r\n\r\n{{".encode())
    await until(lambda: stack.gateway.running == 1)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await until(lambda: stack.gateway.running == 0)
    assert await stack.running.rows() == []
