"""A real server writes its request log, and `deepseek-bench replay` runs it again."""

import asyncio
import resource
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
import pytest_asyncio

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.bench.cli import main
from deepseek_engine.bench.serving.own_server import own_server
from deepseek_engine.request_log.reader import read_request_log
from deepseek_engine.testing.adapters import write_tiny_adapter
from deepseek_engine.testing.checkpoints import write_tiny_checkpoint

START_S = 120
FLAGS = ("--max-batch-size", "4", "--max-num-batched-tokens", "48", "--dtype", "float32", "--threads", "1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def recorded_server(checkpoint: Path, path: Path, *flags: str) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of a server that writes its requests to `path`."""
    flags = (*FLAGS, "--request-log", str(path), *flags)
    async with (
        own_server(str(checkpoint), flags, START_S) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def log(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of twenty requests of all kinds."""
    folder = tmp_path_factory.mktemp("log")
    adapter = write_tiny_adapter(folder / "adapter")
    path = folder / "requests.jsonl"
    lora = ("--enable-lora", "--lora", f"mine={adapter}", "--served-model-name", "m")
    async with recorded_server(checkpoint, path, *lora) as client:
        answers = await asyncio.gather(*(client.post(route, json=body) for route, body in mixed_requests()))
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        await asyncio.gather(hang_up(client), *(abort(client, f"abort-{i}") for i in range(2)))
    return path


def mixed_requests() -> list[tuple[str, dict[str, Any]]]:
    text = {"prompt": "Once upon a time there was a fox", "ignore_eos": True, "max_tokens": 24}
    chat = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "max_tokens": 20}
    word = {"type": "json_schema", "json_schema": {"name": "w", "schema": {"enum": ["north", "south", "east"]}}}
    completions: list[dict[str, Any]] = [
        {},
        {"temperature": 0},
        {"temperature": 1.7, "top_p": 0.9, "top_k": 40},
        {"seed": 7, "n": 3},
        {"n": 2, "logprobs": 3},
        {"stop": list("abcdefgehiklmnop"), "seed": 1, "max_tokens": 100},
        {"stop": ["th"], "n": 2},
        {"prompt": ["The first", "The second"], "presence_penalty": 1.0},
        {"repetition_penalty": 1.3, "logit_bias": {"100": 5}},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"echo": True, "max_tokens": 5},
        {"model": "m:mine", "temperature": 0},
        {"model": "m:mine", "min_tokens": 3},
        {"deadline_s": 0.001, "max_tokens": 900},
    ]
    chats: list[dict[str, Any]] = [{}, {"priority": 3, "seed": -5}, {"response_format": word}]
    return [
        *(("/v1/completions", text | more) for more in completions),
        *(("/v1/chat/completions", chat | more) for more in chats),
        ("/v1/embeddings", {"input": ["one text", "another"]}),
    ]


LONG = {"prompt": "For ever", "ignore_eos": True, "max_tokens": 4000, "stream": True}


async def hang_up(client: httpx.AsyncClient) -> None:
    async with client.stream("POST", "/v1/completions", json=LONG) as response:
        await anext(response.aiter_lines())


async def abort(client: httpx.AsyncClient, request_id: str) -> None:
    headers = {"x-request-id": request_id}
    async with client.stream("POST", "/v1/completions", json=LONG, headers=headers) as response:
        lines = response.aiter_lines()
        await anext(lines)
        assert (await client.post(f"/v1/requests/{request_id}/abort")).status_code == 200
        async for _ in lines:
            pass


def summary(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    printed = capsys.readouterr().out
    return msgspec.json.decode(printed.splitlines()[-1]), printed


def test_all_kinds_of_requests_replay_to_the_recorded_tokens(log: Path, capsys: pytest.CaptureFixture[str]):
    status = main(["replay", str(log), "--set", "max_num_seqs=7"])
    result, printed = summary(capsys)
    assert status == 0, printed
    assert result["requests"] == 23  # two of the calls have two prompts
    assert result["equal"] == result["answers"] == 27
    assert result["ended_early"] >= 5  # aborted, left alone, out of time, ended by a stop string
    assert "not as recorded: config: max_num_seqs was 4 and is 7" in printed
    ends = [end for r in read_request_log([log]).requests.values() for end in r.ends.values()]
    assert {end.finish_reason for end in ends} == {"stop", "length", "abort"}
    assert any(end.timed_out for end in ends)


def test_a_line_that_was_changed_is_found(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = log.read_bytes().splitlines(keepends=True)
    index, end = next(
        (index, end)
        for index, line in enumerate(lines)
        if (end := msgspec.json.decode(line))["type"] == "end" and len(end["token_ids"]) > 4
    )
    end["token_ids"][4] = (end["token_ids"][4] + 1) % 100
    (tmp_path / "log").write_bytes(b"".join([*lines[:index], msgspec.json.encode(end), b"\n", *lines[index + 1 :]]))
    assert main(["replay", str(tmp_path / "log")]) == 1
    result, printed = summary(capsys)
    assert result["different"] == 1
    assert f"request {end['number']} (" in printed
    assert f"token 4 of {len(end['token_ids'])} was {end['token_ids'][4]} and is " in printed


async def test_a_full_disk_costs_lines_and_no_requests(checkpoint: Path, tmp_path: Path):
    path = tmp_path / "log"
    ask = {"prompt": "Hello", "max_tokens": 4}
    async with recorded_server(checkpoint, path) as client:
        (server,) = (each for each in psutil.Process().children() if "deepseek_engine" in " ".join(each.cmdline()))
        # The most that a file may have: as a full disk, but of this process only.
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (path.stat().st_size + 5, resource.RLIM_INFINITY))
        for _ in range(3):
            assert (await client.post("/v1/generate", json=ask)).status_code == 200
        # A request's last line may follow its answer: all must have met the full disk before there is room again.
        lost = "deepseek_engine_request_log_lost_lines_total 6.0"
        while lost not in (await client.get("/metrics")).text:
            pass
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (await client.post("/v1/generate", json=ask)).status_code == 200
        assert lost in (await client.get("/metrics")).text
    run = read_request_log([path])
    assert [(r.record.number, len(r.ends)) for r in run.requests.values()] == [(3, 1)]
    assert not run.unreadable


def test_llm_writes_the_same_log(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with LLM(str(checkpoint), dtype="float32", max_num_seqs=2, request_log=tmp_path / "log") as llm:
        outputs = llm.generate(["a", "b", "c"], SamplingParams(max_tokens=9, n=2, ignore_eos=True, stop=("zz",)))
    run = read_request_log([tmp_path / "log"])
    assert [run.requests[0].ends[i].token_ids for i in (0, 1)] == [answer.token_ids for answer in outputs[0].outputs]
    assert main(["replay", str(tmp_path / "log")]) == 0
    assert summary(capsys)[0]["equal"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/absent/log"], "/absent/log: No such file"),
        (["LOG", "--set", "max_seqs=1"], "'max_seqs' is no setting"),
        (["LOG", "--model-path", "/absent/model"], "/absent/model"),
    ],
)
def test_a_replay_that_cannot_be_says_why(
    arguments: list[str], message: str, log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["replay", *(str(log) if a == "LOG" else a for a in arguments)]) == 1
    assert message in capsys.readouterr().err
