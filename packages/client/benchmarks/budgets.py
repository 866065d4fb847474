"""What the SDK costs beside bare httpx and openai-python, as ratios of one run: `python benchmarks/budgets.py`.

Import and CPU are of this machine and this minute, so only ratios are compared. openai-python is left out where it is
not installed. `--streams N` streams are read for the memory figure (10,000 take a minute or two).
"""

import argparse
import asyncio
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from deepseek_client import AsyncDeepSeek, DeepSeek
from deepseek_client.sse import DONE, encode_event

ROOT = Path(__file__).parents[1]
MESSAGES: Any = [{"role": "user", "content": "Hi"}]
HEAD = {"id": "c", "created": 1, "model": "m"}
CHUNK = HEAD | {
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}],
}
LAST = CHUNK | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
ANSWER = HEAD | {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def stream_body(num_chunks: int) -> bytes:
    """A whole stream."""
    return encode_event(json.dumps(CHUNK)) * num_chunks + encode_event(json.dumps(LAST)) + DONE


def canned(body: bytes, kind: str) -> httpx.Client:
    """A client whose server is in memory, so that only CPU is measured."""
    return httpx.Client(
        transport=httpx.MockTransport(lambda _: httpx.Response(200, headers={"content-type": kind}, content=body))
    )


def cpu_s(work: Callable[[], object], repeats: int = 5) -> float:
    """The median CPU time of a piece of work, after one that warms up."""
    work()
    times: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def import_s(statement: str) -> float:
    """CPU time of an import, less that of the interpreter."""
    program = "import resource as r; u = r.getrusage(r.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    times = [_seconds_of(f"{statement}; {program}") - _seconds_of(program) for _ in range(5)]
    return statistics.median(times)


def _seconds_of(program: str) -> float:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)  # noqa: S603 - our own
    return float(done.stdout)


def openai_client(http_client: httpx.Client) -> Any | None:
    """openai-python over the same server in memory, if it is there."""
    if importlib.util.find_spec("openai") is None:
        return None
    import openai

    return openai.OpenAI(api_key="k", base_url="http://h/v1", http_client=http_client, max_retries=0)


def imports() -> None:
    """`import` of each, over httpx's."""
    base = import_s("import httpx")
    print(f"import httpx                      {base * 1e3:8.1f} ms")
    for name, statement in [
        ("httpx, pydantic.BaseModel", "import httpx; from pydantic import BaseModel"),
        ("deepseek_client.DeepSeek", "from deepseek_client import DeepSeek"),
        ("openai", "import openai"),
    ]:
        if name != "openai" or importlib.util.find_spec("openai"):
            print(f"import {name:<27}{import_s(statement) / base:8.2f} x httpx")


def chunks(num: int = 2000) -> None:
    """CPU per streamed chunk, a snapshot at the end included."""
    http_client = canned(stream_body(num), "text/event-stream")
    ours = DeepSeek(base_url="http://h", http_client=http_client)
    work: dict[str, Callable[[], object]] = {
        "create(stream=True)": lambda: ours.chat.completions.create(messages=MESSAGES, stream=True).until_done(),
        "stream()": lambda: ours.chat.completions.stream(messages=MESSAGES).get_final_completion(),
    }
    theirs = openai_client(http_client)
    mine = {name: cpu_s(job) / num * 1e6 for name, job in work.items()}
    for name, us in mine.items():
        print(f"chunk, ours {name:<22}{us:8.1f} us")
    if theirs is not None:

        def plain() -> None:
            for _ in theirs.chat.completions.create(model="m", messages=MESSAGES, stream=True):
                pass

        def helper() -> None:
            with theirs.chat.completions.stream(model="m", messages=MESSAGES) as stream:
                stream.get_final_completion()

        for name, job in (("create(stream=True)", plain), ("stream()", helper)):
            us = cpu_s(job, 3) / num * 1e6
            print(f"chunk, openai {name:<20}{us:8.1f} us = {us / mine[name]:.1f} x ours")


def calls(num: int = 200) -> None:
    """CPU of a call that does not stream, over bare httpx's."""
    body = json.dumps(ANSWER).encode()
    http_client = canned(body, "application/json")
    ours = DeepSeek(base_url="http://h", http_client=http_client)

    def bare() -> None:
        for _ in range(num):
            http_client.post("http://h/v1/chat/completions", json={"model": "m", "messages": MESSAGES}).json()

    def mine() -> None:
        for _ in range(num):
            ours.chat.completions.create(model="m", messages=MESSAGES)

    base = cpu_s(bare)
    print(f"call, bare httpx                  {base / num * 1e6:8.1f} us")
    print(f"call, ours                        {cpu_s(mine) / base:8.2f} x httpx")
    theirs = openai_client(http_client)
    if theirs is not None:

        def other() -> None:
            for _ in range(num):
                theirs.chat.completions.create(model="m", messages=MESSAGES)

        print(f"call, openai                      {cpu_s(other, 3) / base:8.2f} x httpx")


class Handler(BaseHTTPRequestHandler):
    """Streams to anyone, and counts connections."""

    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self) -> None:
        """A connection begins."""
        super().setup()
        Handler.connections += 1

    def do_POST(self) -> None:
        """Answer with a short stream."""
        self.rfile.read(int(self.headers["content-length"]))
        body = stream_body(5)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def sockets(num_streams: int) -> None:
    """Connections for 20 streams, and memory over many, on a real socket."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"

    def drain(client: DeepSeek, num: int) -> None:
        for _ in range(num):
            client.chat.completions.stream(messages=MESSAGES, model="m").until_done()

    async def drain_async() -> None:
        async with AsyncDeepSeek(base_url=url) as client:
            for _ in range(20):
                await client.chat.completions.stream(messages=MESSAGES, model="m").until_done()

    with DeepSeek(base_url=url) as client:
        drain(client, 20)
        print(f"connections for 20 streams, sync  {Handler.connections:8d}")
        Handler.connections = 0
        asyncio.run(drain_async())
        print(f"connections for 20 streams, async {Handler.connections:8d}")
        drain(client, max(num_streams // 10, 100))
        before = rss_mb()
        drain(client, num_streams)
        print(f"memory over {num_streams} streams{'':<10}{rss_mb() - before:8.2f} MB")
    server.shutdown()


def rss_mb() -> float:
    """What the process holds now."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 1e6


def wheel() -> None:
    """The size of the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(ROOT)]
        subprocess.run(command, check=True)  # noqa: S603 - our own
        size = next(Path(folder).glob("*.whl")).stat().st_size
    print(f"wheel                             {size / 1e3:8.1f} kB")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000, help="streams read for the memory figure")
    arguments = parser.parse_args()
    imports()
    chunks()
    calls()
    sockets(arguments.streams)
    wheel()


if __name__ == "__main__":
    main()
