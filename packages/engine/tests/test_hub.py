"""Models of the Hub, from a server on a real socket that speaks the few of its routes that huggingface_hub calls."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.hub import HubModel
from deepseek_engine.llm import LLM
from deepseek_engine.model_source import model_display_name, resolve_model
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.checkpoints import write_tiny_checkpoint
from deepseek_engine.tokenizer import load_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WAIT_S = 60.0


@dataclass
class Hub:
    """One repository, `tiny/model`, and what was asked for.

    Attributes:
        gated: whether files need a token, as of a model whose terms have to be accepted.
        stall: hold back the weights after their first bytes until `release` is set.
    """

    files: dict[str, bytes]
    gated: bool = False
    stall: bool = False
    requests: list[str] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    @property
    def downloaded(self) -> set[str]:
        gets = [line.split()[1] for line in self.requests if line.startswith("GET") and "/resolve/" in line]
        return {path.partition(f"/resolve/{COMMIT}/")[2] for path in gets}


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(self.requestline)
        path = urllib.parse.unquote(self.path.partition("?")[0])
        known, _, rest = path.partition("tiny/model/")
        if known == "/api/models/" and rest.startswith("revision/"):
            if rest.removeprefix("revision/") not in ("main", "v1", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            siblings = [{"rfilename": name} for name in self.hub.files]
            return self.answer(json.dumps({"id": "tiny/model", "sha": COMMIT, "siblings": siblings}).encode())
        if known == "/api/models/" and rest.startswith("tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                for name, data in self.hub.files.items()
            ]
            return self.answer(json.dumps(entries).encode())
        if known == "/" and rest.startswith("resolve/"):
            name = rest.split("/", 2)[2]
            if self.hub.gated:
                return self.refuse(403, "GatedRepo")
            if name not in self.hub.files:
                return self.refuse(404, "EntryNotFound")
            return self.answer(self.hub.files[name], stall=self.hub.stall and name.endswith(".safetensors"))
        return self.refuse(401 if "private" in path else 404, "RepoNotFound")

    def answer(self, data: bytes, *, stall: bool = False) -> None:
        self.send_response(200)
        for name, value in (("Content-Length", str(len(data))), ("ETag", f'"{etag(data)}"'), ("X-Repo-Commit", COMMIT)):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[:100])
        if stall:
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.release.wait(WAIT_S)
        else:
            self.wfile.write(data[100:])

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = write_tiny_checkpoint(tmp_path / "published")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    clutter = ("pytorch_model.bin", "modeling_x.py", "original/model.safetensors", "consolidated.safetensors", "a.onnx")
    with running(Hub(files | dict.fromkeys(clutter, b"not to be downloaded"))) as hub:
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
        yield hub


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("org/name", HubModel("org/name")),
        ("deepseek-ai/DeepSeek-V2-Lite@main", HubModel("deepseek-ai/DeepSeek-V2-Lite", "main")),
        ("org/name@refs/pr/1", HubModel("org/name", "refs/pr/1")),
        ("org/name/q4/x.gguf", HubModel("org/name", None, "q4/x.gguf")),
        ("org/name@v1/x.gguf", HubModel("org/name", "v1", "x.gguf")),
        *((path, None) for path in ("name", "./org/name", "/org/name", "~/name", "../name", "org/name/more", "")),
        *((path, None) for path in ("dir/m.gguf", "dir/model.bin", "org/..", "org/name@", "org/name@a b", "org/na me")),
    ],
)
def test_what_is_a_hub_id_and_what_a_path(text: str, model: HubModel | None):
    assert HubModel.parse(text) == model


def test_a_hub_id_is_downloaded_once_without_pickles_and_code_and_then_works_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    with LLM("tiny/model@v1", dtype="float32", num_kv_blocks=8) as llm:
        assert len(llm.generate("Hi", SamplingParams(max_tokens=2))[0].outputs[0].token_ids) == 2
    wanted = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert hub.downloaded == wanted
    num_requests = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = resolve_model("tiny/model@v1")
    assert wanted == {path.name for path in folder.iterdir()}
    assert len(hub.requests) == num_requests
    with pytest.raises(ModelLoadError, match=r"other/model is not whole in the cache .* HF_HUB_OFFLINE"):
        resolve_model("other/model")


def test_a_gguf_file_of_a_repository_is_named_behind_it(hub: Hub):
    hub.files = {"q4/x.Q4.gguf": b"GGUF and more", "x.Q8.gguf": b""}
    path = resolve_model("tiny/model/q4/x.Q4.gguf")
    assert path.read_bytes() == b"GGUF and more"
    assert model_display_name("tiny/model/q4/x.Q4.gguf") == "x.Q4"
    with pytest.raises(ModelLoadError, match=r"no \.safetensors file, but GGUF ones: .*tiny/model/q4/x\.Q4\.gguf"):
        resolve_model("tiny/model")
    with pytest.raises(ModelLoadError, match=r"no file y\.gguf: see http.*/tiny/model/tree/main"):
        resolve_model("tiny/model/y.gguf")


def test_a_split_gguf_file_is_downloaded_with_all_its_parts(hub: Hub):
    names = [f"q4/x-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    hub.files = {name: name.encode() for name in names}
    path = resolve_model(f"tiny/model/{names[0]}")
    assert path.read_bytes() == names[0].encode()
    assert {other.name for other in path.parent.iterdir()} == {Path(name).name for name in names}
    hub.files = {"y-00001-of-00002.gguf": b""}
    with pytest.raises(ModelLoadError, match=r"no file y-00002-of-00002\.gguf: see http"):
        resolve_model("tiny/model/y-00001-of-00002.gguf")


def test_each_way_to_fail_says_what_to_do(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelLoadError, match=r"no/such is neither a folder here nor a repository of .*HF_TOKEN"):
        resolve_model("no/such")
    with pytest.raises(ModelLoadError, match=r"my/private is neither .* or it is private"):
        resolve_model("my/private")
    with pytest.raises(ModelLoadError, match="has no revision 'v2': give a branch, a tag or a commit"):
        resolve_model("tiny/model@v2")
    hub.gated = True
    with pytest.raises(ModelLoadError, match=r"tiny/model is gated: accept its terms at http.*/tiny/model.* HF_TOKEN"):
        resolve_model("tiny/model")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "another"))  # what a commit holds is kept
    hub.gated, hub.files = False, {"pytorch_model.bin": b"pickle", "config.json": b"{}"}
    with pytest.raises(ModelLoadError, match=r"only pytorch_model\.bin: .*can run code.*save_pretrained"):
        resolve_model("tiny/model@main")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelLoadError, match=r"http://127\.0\.0\.1:9 cannot be reached .*check the network"):
        resolve_model("other/model")


def test_a_folder_that_exists_wins_over_a_hub_id(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny/model").mkdir(parents=True)
    assert resolve_model("tiny/model") == Path("tiny/model")
    assert model_display_name("tiny/model") == "model"
    assert hub.requests == []


def test_the_server_downloads_once_for_both_processes_and_answers_to_the_repository(hub: Hub, tmp_path: Path):
    with serving("tiny/model") as process:
        assert process.stderr is not None
        log = read_until(process.stderr, b"ready on")
        assert b"model=tiny/model " in log
        assert b"Fetching" not in log, "progress bars are for terminals"
    for name in hub.downloaded:
        assert sum(f"/{name} " in line for line in hub.requests if line.startswith("GET")) == 1
    assert load_tokenizer("tiny/model").vocab_size == 259


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_download_ends_with_its_server_and_the_next_one_goes_on(hub: Hub, number: signal.Signals, status: int):
    hub.stall = True
    with serving("tiny/model") as process:
        assert hub.stalled.wait(WAIT_S)
        process.send_signal(number)
        assert process.wait(WAIT_S) == status
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()  # it ends when the downloading process has closed it too
    hub.stall = False
    assert (resolve_model("tiny/model") / "model.safetensors").is_file()


@contextmanager
def serving(model: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "deepseek_engine.server", "--model-path", model, "--port", "0", "--threads", "1"]
    with subprocess.Popen([*command, "--kv-cache-memory", "1MiB"], stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(WAIT_S)


def read_until(stream: object, text: bytes) -> bytes:
    lines: list[bytes] = []
    for line in stream:  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        lines.append(line)
        if text in line:
            break
    return b"".join(lines)
