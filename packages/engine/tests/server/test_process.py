"""`deepseek-server` as a process, with the real model: the command, its signals, and the openai package as a client."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

import deepseek_engine
from deepseek_engine.server.cli import main
from deepseek_engine.server.command import parse_settings

START_S = 120
# One thread: on a busy machine, threads of a pool that wait for each other make every token slow.
_QUIET = ("--max-model-len", "1024", "--threads", "1", "--drain-timeout", "120")


class ServerProcess:
    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log
        self.url = self._wait_ready()

    def _wait_ready(self) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            found = re.search(r"ready on (\S+):", self.log.read_text())
            if found:
                return found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError("not ready: " + self.log.read_text())

    def wait(self) -> int:
        return self.process.wait(timeout=30)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ENGINE_")}


@contextmanager
def _server(folder: Path, *arguments: str) -> Iterator[ServerProcess]:
    log = folder / "server.log"
    command = [sys.executable, "-m", "deepseek_engine.server", *_QUIET, *arguments]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stderr=output, stdout=output, env=_environment()) as process,
    ):
        try:
            yield ServerProcess(process, log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with _server(tmp_path_factory.mktemp("server"), "--port", "0", "--api-key", "k") as running:
        yield running


ASK = {"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
GREEDY = {"temperature": 0, "max_tokens": 24}


def test_the_openai_package_works_unchanged_sync(server: ServerProcess):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        whole = client.chat.completions.create(**ASK, **GREEDY)
        assert "Paris" in whole.choices[0].message.content
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        chunks = list(
            client.chat.completions.create(**ASK, **GREEDY, stream=True, stream_options={"include_usage": True})
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        completion = client.completions.create(model="smollm2", prompt="The capital of France is", **GREEDY, logprobs=1)
        assert "Paris" in completion.choices[0].text
        assert completion.choices[0].logprobs.tokens
        assert [model.id for model in client.models.list()] == ["smollm2"]
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="smollm2", prompt="word " * 9000)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.UnprocessableEntityError):
            client.chat.completions.create(**ASK, temperature=5)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**ASK | {"model": "other"})
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()


async def test_the_openai_package_works_unchanged_async(server: ServerProcess):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:

        async def ask() -> str:
            stream: Any = await client.chat.completions.create(**ASK, **GREEDY, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*(ask() for _ in range(4)))
    assert all("Paris" in answer for answer in answers)


def test_a_begun_answer_goes_on_as_the_whole_one_does(server: ServerProcess):
    with openai.OpenAI(base_url=f"{server.url}/beta", api_key="k", max_retries=0) as client:
        whole = client.chat.completions.create(**ASK, **GREEDY).choices[0].message.content
        begun, rest = whole[: whole.index(" Paris")], whole[whole.index(" Paris") :]
        ask = ASK | {"messages": [*ASK["messages"], {"role": "assistant", "content": begun, "prefix": True}]}
        assert client.chat.completions.create(**ask, **GREEDY).choices[0].message.content.startswith(rest)
        chunks = list(client.chat.completions.create(**ask, **GREEDY, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith(rest)


def test_sigterm_lets_a_running_stream_finish_and_exits_0(tmp_path: Path):
    socket_path = tmp_path / "engine.sock"
    with _server(tmp_path, "--uds", str(socket_path)) as running:
        assert running.url == f"unix:{socket_path}"
        assert socket_path.stat().st_mode & 0o077 == 0, "the socket is its user's alone"
        transport = httpx.HTTPTransport(uds=str(socket_path))
        with httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
            body = {
                "prompt": "Tell me a story.",
                "max_tokens": 20,
                "stream": True,
                "ignore_eos": True,
                "temperature": 0,
            }
            with client.stream("POST", "/v1/generate", json=body) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data: ")
                running.process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert '"completion_tokens":20' in rest[-2]
        assert running.wait() == 0
        assert not socket_path.exists()


def test_a_killed_core_makes_the_server_exit_with_a_failure(server: ServerProcess):
    # The last test of this module: it ends the server that the others share.
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children
    for child in children:
        child.kill()
    assert server.wait() == 1
    assert "core" in server.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "--port (ENGINE_PORT)"),
        (["--dtype", "int3"], "--dtype (ENGINE_DTYPE)"),
        (["--temperature", "9"], "temperature=9.0 is out of range"),
        (["--max-batch-size", "64", "--max-num-batched-tokens", "8"], "max_num_batched_tokens=8"),
        (["--quantization", "int3"], "--quantization (ENGINE_QUANTIZATION)"),
        (["--tensor-parallel-size", "0"], "--tensor-parallel-size (ENGINE_TENSOR_PARALLEL_SIZE)"),
        (["--pipeline-parallel-size", "2"], "unrecognized arguments"),
    ],
)
def test_a_wrong_setting_names_itself(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in set(os.environ) - set(_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["deepseek-server", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    _is_told_shortly(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--port", "99999"], 2, "--port (ENGINE_PORT)"),
        (["--tensor-parallel-size", "2", "--port", "0"], 1, "num_attention_heads=9 is not a multiple"),
        (["--model-path", "/absent/model", "--port", "0"], 1, "no such file or folder"),
        (["--max-model-len", "1000000", "--port", "0"], 1, "deepseek-server: max_model_len=1000000 is beyond the 8192"),
        (["--uds", "/absent/folder/x.sock"], 1, "cannot listen on /absent/folder/x.sock"),
    ],
)
def test_a_setting_that_cannot_be_ends_the_process_with_its_reason(arguments: list[str], status: int, message: str):
    command = [sys.executable, "-m", "deepseek_engine.server", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=_environment(), check=False)
    assert result.returncode == status
    _is_told_shortly(message, result.stderr)


def _is_told_shortly(message: str, written: str) -> None:
    assert message in written
    assert "Traceback" not in written
    assert len(written.splitlines()) <= 3, "the reason does not drown in the list of flags"


def test_a_taken_port_is_said_before_the_model_loads():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "deepseek_engine.server", "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=_environment(), check=False)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_without_the_server_extra_the_command_says_what_to_install():
    code = "import sys; sys.modules['uvicorn'] = None; from deepseek_engine.server.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "pip install 'deepseek-engine[server]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_every_flag_with_its_default():
    command = [sys.executable, "-m", "deepseek_engine.server", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    for flag in ("--model-path", "--batch-size", "--no-prefix-cache", "--drain-timeout", "--served-model-name"):
        assert flag in result.stdout


def test_version_says_the_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse_settings(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"deepseek-server {deepseek_engine.__version__}\n"
