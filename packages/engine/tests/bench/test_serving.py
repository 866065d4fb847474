"""`deepseek-bench serving` as a command, against servers on sockets: scripted ones that misbehave, and a real one."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from aiohttp import web

from deepseek_engine.bench.cli import main
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint

DEADLINE_S = 20.0


class ScriptedServer:
    """Streams "a b c" to each request, or does to request number n what `behave(n)` says."""

    def __init__(self, behave: Callable[[int], str], hold_until: int) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.has_usage = True
        self._behave = behave
        self._hold_until = hold_until
        self._all_came = asyncio.Event()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "scripted"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        behaviour = self._behave(len(self.bodies) - 1)
        if len(self.bodies) >= self._hold_until:
            self._all_came.set()
        await self._all_came.wait()
        if behaviour == "refuse":
            return web.json_response({"error": {"message": "busy"}}, status=503)
        response = web.StreamResponse()
        await response.prepare(request)
        for text in "abc":
            await self._send(response, choices=[{"delta": {"content": text}, "finish_reason": None}])
        if behaviour == "hang up":
            request.transport.abort()
        elif behaviour == "error":
            await response.write(b'event: error\ndata: {"error": {"message": "lost it"}}\n\n')
        elif behaviour == "nonsense":
            await response.write(b"data: {]\n\n")
        elif behaviour != "cut":
            finish = "abort" if behaviour == "abort" else "stop"
            await self._send(response, choices=[{"delta": {}, "finish_reason": finish}])
            if self.has_usage:
                await self._send(response, choices=[], usage={"prompt_tokens": 7, "completion_tokens": 5})
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _send(self, response: web.StreamResponse, **chunk: Any) -> None:
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


@contextmanager
def scripted(behave: Callable[[int], str] = lambda n: "answer", hold_until: int = 0) -> Iterator[tuple[str, Any]]:
    """Run the server in a thread; its URL, and the server."""
    loop = asyncio.new_event_loop()

    async def start() -> tuple[str, web.AppRunner, ScriptedServer]:
        server = ScriptedServer(behave, hold_until)
        app = web.Application()
        app.add_routes([web.get("/v1/models", server.models), web.post("/v1/{rest:.*}", server.answer)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        return f"http://{host}:{port}/v1", runner, server

    url, runner, server = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield url, server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(DEADLINE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Run the command; its status, what it printed, and its JSON file."""

    def run(*arguments: str, warmup: str = "0") -> tuple[int, str, dict[str, Any]]:
        output = tmp_path / "results.json"
        status = main(["serving", "--output", str(output), "--warmup", warmup, "--timeout", "10", *arguments])
        captured = capsys.readouterr()
        return status, captured.out + captured.err, json.loads(output.read_text()) if output.exists() else {}

    return run


def test_every_request_is_counted_once_whatever_became_of_it(run: Any):
    kinds = ["answer", "refuse", "hang up", "error", "nonsense", "cut", "abort", "answer", "refuse", "answer"]
    with scripted(kinds.__getitem__) as (url, _):
        status, text, results = run("--base-url", url, "--concurrency", "1", "--num-requests", "10")
    summary = results["summary"]
    assert status == 0
    assert summary["num_whole"] == 3
    assert summary["failures"] == {
        "HTTP 503": 2, "connection lost": 1, "error in stream": 1, "unreadable answer": 1, "cut off": 1,
        "finish_reason abort": 1,
    }  # fmt: skip
    assert "3 of 10 requests whole" in text
    assert 'failed: 2 x HTTP 503: {"error": {"message": "busy"}}' in text
    assert summary["output_tokens"] == 15, "only whole answers count, with the server's own count"
    assert json.loads(text.splitlines()[-1])["summary"] == summary


def test_an_open_loop_sends_on_time_although_nothing_is_answered(run: Any):
    with scripted(hold_until=20) as (url, _):  # answers the first when the last has come
        status, _, results = run("--base-url", url, "--request-rate", "200", "--num-requests", "20")
    assert status == 0
    assert results["summary"]["num_whole"] == 20
    last_due_s = results["requests"][-1]["due_s"]
    first = results["requests"][0]
    assert first["first_token_s"] - first["due_s"] >= last_due_s, "the stall shows in every latency"


def test_a_closed_loop_never_has_more_under_way_than_asked(run: Any):
    with scripted() as (url, _):
        _, _, results = run("--base-url", url, "--concurrency", "3", "--num-requests", "15")
    requests = results["requests"]
    for request in requests:
        under_way = [each for each in requests if each["sent_s"] <= request["sent_s"] < each["end_s"]]
        assert len(under_way) <= 3


def test_the_same_seed_asks_for_the_same(run: Any):
    flags = ("--concurrency", "1", "--num-requests", "4", "--prompt-tokens", "uniform:2:9", "--ignore-eos")
    asked: list[Any] = []
    for seed in ("1", "1", "2"):
        with scripted() as (url, server):
            run("--base-url", url, *flags, "--seed", seed)
            asked.append(server.bodies)
    assert asked[0] == asked[1] != asked[2]
    body = asked[0][0]
    assert body["model"] == "scripted"
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert all(2 <= len(each["messages"][0]["content"].split()) <= 9 for each in asked[0])


def test_goodput_counts_answers_within_every_goal(run: Any):
    with scripted(lambda n: "refuse" if n % 2 else "answer") as (url, _):
        flags = ("--base-url", url, "--concurrency", "1", "--num-requests", "6")
        _, text, results = run(*flags, "--goodput", "ttft:10000", "e2e:10000")
        assert results["summary"]["good"] == 3
        assert "50.0 % of those sent had ttft <= 10000 ms, e2e <= 10000 ms" in text
        _, _, results = run(*flags, "--goodput", "ttft:10000", "e2e:0.001")
    assert results["summary"]["good"] == 0


def test_events_count_as_tokens_where_the_server_says_no_usage(run: Any):
    with scripted() as (url, server):
        server.has_usage = False
        _, text, results = run("--base-url", url, "--concurrency", "1", "--num-requests", "2")
    assert results["summary"]["output_tokens"] == 6
    assert "2 answers came without usage" in text


def test_prompts_of_a_sharegpt_file_are_asked(run: Any, tmp_path: Path):
    file = tmp_path / "chats.jsonl"
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "x" * 40}]
    entries = [{"conversations": turns}, {"prompt": "Why?", "max_tokens": 3}, {"conversations": []}]
    file.write_text("\n".join(map(json.dumps, entries)))
    with scripted() as (url, server):
        run("--base-url", url, "--concurrency", "1", "--num-requests", "4", "--dataset", str(file))
        asked = sorted((body["messages"][0]["content"], body["max_tokens"]) for body in server.bodies)
    assert asked == [("Who?", 10), ("Who?", 10), ("Why?", 3), ("Why?", 3)]


def test_a_server_that_refuses_the_warm_up_is_reported_at_once(run: Any):
    with scripted(lambda n: "refuse") as (url, server):
        status, text, results = run("--base-url", url, "--concurrency", "1", warmup="2")
        assert len(server.bodies) == 1
    assert (status, results) == (1, {})
    assert "the warm-up failed, so nothing was measured: HTTP 503" in text


def test_nobody_listening_is_said_plainly(run: Any):
    status, text, _ = run("--base-url", "http://127.0.0.1:9/v1", "--concurrency", "1")
    assert status == 1
    assert "http://127.0.0.1:9/v1/models cannot be read" in text


def test_ctrl_c_reports_what_was_measured():
    came = threading.Event()

    def behave(n: int) -> str:
        if n == 2:
            came.set()
        return "answer"

    with scripted(behave, hold_until=4) as (url, _):
        command = [sys.executable, "-m", "deepseek_engine.bench.cli", "serving", "--base-url", url, "--warmup", "0"]
        load = ["--request-rate", "inf", "--num-requests", "3"]
        with subprocess.Popen([*command, *load], stdout=subprocess.PIPE, text=True) as process:
            assert came.wait(DEADLINE_S)
            process.send_signal(signal.SIGINT)
            text = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == 130
    assert "0 of 3 requests whole" in text
    assert "failed: 3 x interrupted" in text


def test_the_plot_is_a_picture_with_a_dot_for_each_request(run: Any, tmp_path: Path):
    plot = tmp_path / "plot.svg"
    with scripted(lambda n: "refuse" if n == 3 else "answer") as (url, _):
        run("--base-url", url, "--request-rate", "inf", "--num-requests", "8", "--plot", str(plot))
    dots = [each for each in ET.parse(plot).iter() if each.tag.endswith("circle") and each.get("r") == "2"]
    assert len(dots) == 7 + 7 + 1


@pytest.mark.parametrize("target", ["--model", "--shape"])
def test_a_server_of_its_own_answers_prompts_of_exact_lengths(run: Any, tmp_path: Path, target: str):
    flags = ("--shape", "tiny-moe")
    if target == "--model":
        folder = write_tiny_checkpoint(tmp_path / "tiny", TinyModel(max_position_embeddings=512))
        flags = ("--model", str(folder), "--prompts", "tokens", "--vocab-size", "256")
    status, text, results = run(
        *flags, "--server-args", "--dtype float32 --threads 1", "--concurrency", "4", "--num-requests", "8",
        "--prompt-tokens", "uniform:5:9", "--output-tokens", "6", "--ignore-eos", warmup="1",
    )  # fmt: skip
    assert status == 0, text
    assert results["summary"]["num_whole"] == 8
    assert all(request["output_tokens"] == 6 for request in results["requests"])
    assert all(5 <= request["prompt_tokens"] <= 9 for request in results["requests"])


def test_a_model_that_cannot_be_served_gives_the_servers_reason(run: Any):
    status, text, _ = run("--model", "no-such-model-here", "--concurrency", "1")
    assert status == 1
    assert "the server did not start" in text
    assert "no-such-model-here" in text


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--concurrency", "0"), "at least 1"),
        (("--request-rate", "-1"), "above 0"),
        (("--request-rate", "2", "--concurrency", "2"), "not allowed with"),
        (("--concurrency", "2", "--goodput", "itl:5"), "ttft, tpot, e2e"),
        (("--concurrency", "2", "--prompt-tokens", "uniform:9:3"), "no distribution of lengths"),
        (("--concurrency", "2", "--prompts", "tokens", "--endpoint", "chat"), "needs --endpoint completions"),
        (("--concurrency", "2", "--extra-body", "[1]"), "not a JSON object"),
        (("--concurrency", "2", "--server-args=--threads 1"), "needs --model"),
        (("--concurrency", "2", "--shape", "tiny-moe"), "not allowed with"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["serving", "--base-url", "http://127.0.0.1:9/v1", *flags])
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err
