"""What the package may cost, in things that can be counted: no clock here. `benchmarks/budgets.py` has the timings."""

import json
import subprocess
import sys
from base64 import b64encode
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

import deepseek_client
from deepseek_client import DeepSeek
from deepseek_client.sse import DONE, encode_event
from deepseek_client.transport.library import library

SOURCE = Path(deepseek_client.__file__).parent
PACKAGE = Path(__file__).parents[1]
MESSAGES = [{"role": "user", "content": "Hi"}]
IMPORTED_BY_A_CLIENT = {
    "deepseek_client",
    "deepseek_client.client",
    "deepseek_client.errors",
    "deepseek_client.settings",
}
HEAVY = (
    "httpx",
    "httpx2",
    "httpcore",
    "pydantic",
    "pydantic_core",
    "anyio",
    "asyncio",
    "ssl",
    "logging",
    "rich",
    "openai",
)


def modules_after(code):
    """All modules of a fresh process that has run some code."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("cls", ["DeepSeek", "AsyncDeepSeek"])
def test_importing_and_making_a_client_loads_four_small_modules_of_ours_and_nothing_heavy(cls):
    loaded = modules_after(f"from deepseek_client import {cls}, APIStatusError, Timeout\n{cls}(base_url='http://h')")
    assert {name for name in loaded if name.startswith("deepseek_client")} == IMPORTED_BY_A_CLIENT
    assert loaded.isdisjoint(HEAVY)


def test_what_a_program_does_not_use_is_not_loaded_by_its_first_call():
    loaded = modules_after(
        "from deepseek_client import DeepSeek\n"
        "from deepseek_client.testing import FakeServer, chat_completion, reply\n"
        "with FakeServer() as server:\n"
        "    server.script(reply(chat_completion()))\n"
        "    DeepSeek(base_url=server.url).chat.completions.create(model='m', messages=[])"
    )
    unused = ("cli", "endpoints", "otel", "resources.account", "rounds")
    unused += ("terminal", "tools")
    assert loaded.isdisjoint(f"deepseek_client.{name}" for name in unused)


def stream_body(num_chunks):
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunk = head | {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}]}
    last = head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return encode_event(json.dumps(chunk)) * num_chunks + encode_event(json.dumps(last)) + DONE


def canned(http_library, num_chunks):
    """A client whose server is in memory."""
    kind, body = {"content-type": "text/event-stream"}, stream_body(num_chunks)
    answer = http_library.MockTransport(lambda _: http_library.Response(200, headers=kind, content=body))
    return http_library.Client(transport=answer)


def calls_of(work):
    """How many functions are called, Python's and C's: the same each time, however fast the machine is."""
    num_calls = 0

    def count(frame, event, arg):
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    work()  # what is done once
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return num_calls


def calls_per_chunk(make_client, read):
    few, many = (calls_of(partial(read, make_client(num))) for num in (100, 300))
    return (many - few) / 200


def read_chunks(client):
    for _ in client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
        pass


def read_events(client):
    with client.chat.completions.stream(model="m", messages=MESSAGES) as stream:
        assert stream.get_final_completion().choices[0].message.content


def ours(num_chunks):
    return DeepSeek(base_url="http://h", http_client=canned(library(), num_chunks))


@pytest.mark.parametrize(("read", "most"), [(read_chunks, 40), (read_events, 60)])
def test_a_chunk_costs_few_calls_and_a_fifth_of_openai_python_s_at_most(read, most):
    mine = calls_per_chunk(ours, read)
    assert mine <= most
    openai = pytest.importorskip("openai")
    http_library = pytest.importorskip("httpx2" if openai.VERSION >= "3" else "httpx")

    def theirs(num_chunks):
        http_client = canned(http_library, num_chunks)
        return openai.OpenAI(api_key="k", base_url="http://h/v1", http_client=http_client, max_retries=0)

    assert 5 * mine <= calls_per_chunk(theirs, read)


def test_the_wheel_keeps_its_budget():
    """The files as a wheel packs them, without building one: within some hundred bytes of what is built."""
    paths = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(SOURCE.parent).as_posix(): path.read_bytes() for path in paths}
    files["deepseek_client-0.1.0.dist-info/METADATA"] = (PACKAGE / "README.md").read_bytes()
    files["deepseek_client-0.1.0.dist-info/WHEEL"] = (PACKAGE / "pyproject.toml").read_bytes()  # and what else is small
    hashes = [f"{name},sha256={b64encode(sha256(content).digest()).decode()}" for name, content in files.items()]
    files["deepseek_client-0.1.0.dist-info/RECORD"] = "\n".join(hashes).encode()
    wheel = BytesIO()
    with ZipFile(wheel, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert len(wheel.getvalue()) <= 150_000
