"""What the SDK costs beside bare httpx and openai-python, as ratios of one run: `python benchmarks/budgets.py`.

Import and CPU are of this machine and this minute, so only ratios are compared. openai-python is left out where it is
not installed. `--streams N` streams of each kind are read for the memory figure (10,000 take some minutes). Each budget
of the package is a line that begins with BUDGET.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
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


def imports(repeats: int, port: int) -> None:
    """Import, making a client, and the first call, each in fresh processes that take turns; over httpx's import."""
    url = f"http://127.0.0.1:{port}"
    ours, made = "from deepseek_client import DeepSeek", f"c = DeepSeek(base_url={url!r})"
    call = f"c.chat.completions.create(model='m', messages={MESSAGES})"
    theirs, other = "import openai", f"c = openai.OpenAI(api_key='k', base_url={url + '/v1'!r})"
    bare = f"httpx.Client(trust_env=False).post({url + '/x'!r}, json={{}}).json()"
    programs = {
        "nothing": "",
        "import httpx": "import httpx",
        "import httpx, pydantic.BaseModel": "import httpx; from pydantic import BaseModel",
        "import deepseek_client": "import deepseek_client",
        "import DeepSeek": ours,
        "import DeepSeek, make a client": f"{ours}; {made}",
        "httpx: import, client, call": f"import httpx; {bare}",
        "ours: import, client, call": f"{ours}; {made}; {call}",
        "import openai": theirs,
        "import openai, make a client": f"{theirs}; {other}",
        "openai: import, client, call": f"{theirs}; {other}; {call}",
    }
    if importlib.util.find_spec("openai") is None:
        programs = {name: program for name, program in programs.items() if "openai" not in name}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            times[name].append(_cpu_of(program))
    medians = {name: statistics.median(each) for name, each in times.items()}
    base = medians["import httpx"] - medians["nothing"]
    for name, median in medians.items():
        if name != "nothing":
            ms = (median - medians["nothing"]) * 1e3
            spread = (max(times[name]) - min(times[name])) * 1e3
            print(f"{name:<34}{ms:8.1f} ms (spread {spread:.0f}) = {ms / base / 1e3:.2f} x import httpx")
    budget("import", (medians["import DeepSeek"] - medians["nothing"]) / base, 2.0)


def _cpu_of(program: str) -> float:
    """CPU seconds of a process."""
    read = "import resource as r; u = r.getrusage(r.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{read}"], capture_output=True, check=True)  # noqa: S603
    return float(done.stdout)


def budget(name: str, value: float, most: float, *, is_least: bool = False) -> None:
    """Say whether a budget is kept."""
    is_kept = value >= most if is_least else value <= most
    verdict = "kept" if is_kept else "BROKEN"
    print(f"BUDGET {name:<27}{value:8.2f} {'>=' if is_least else '<='} {most:g}: {verdict}")


def openai_client(http_client: httpx.Client) -> Any | None:
    """openai-python over the same server in memory, if it is there."""
    if importlib.util.find_spec("openai") is None:
        return None
    import openai

    return openai.OpenAI(api_key="k", base_url="http://h/v1", http_client=http_client, max_retries=0)


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
            print(f"chunk, openai {name:<20}{us:8.1f} us")
            budget(f"chunk, {name}", us / mine[name], 5, is_least=True)


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
    ratio = cpu_s(mine) / base
    budget("call over httpx", ratio, 2.5)
    theirs = openai_client(http_client)
    if theirs is not None:

        def other() -> None:
            for _ in range(num):
                theirs.chat.completions.create(model="m", messages=MESSAGES)

        print(f"call, openai                      {cpu_s(other, 3) / base:8.2f} x httpx")


class Handler(BaseHTTPRequestHandler):
    """Streams to those who ask for it, answers others whole, and counts connections."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    connections = 0

    def setup(self) -> None:
        """A connection begins."""
        super().setup()
        Handler.connections += 1

    def do_POST(self) -> None:
        """Answer."""
        request = self.rfile.read(int(self.headers["content-length"]))
        is_stream = b'"stream":true' in request
        body = stream_body(5) if is_stream else json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if is_stream else "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self) -> None:
        """How many connections there were."""
        body = str(Handler.connections).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextlib.contextmanager
def served() -> Iterator[int]:
    """A server in a process of its own, so that its memory is not ours; gives its port."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import budgets; budgets.serve()"
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE)  # noqa: S603
    assert server.stdout is not None
    try:
        yield int(server.stdout.readline())
    finally:
        server.kill()
        server.wait()


def serve() -> None:
    """Serve until killed; GET answers how many connections there were."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def num_connections(port: int) -> int:
    """How many connections the server has seen before this one."""
    return httpx.get(f"http://127.0.0.1:{port}/").json() - 1


def streams(port: int, num: int) -> None:
    """Connections for 20 streams, and memory over many, on a real socket."""
    url = f"http://127.0.0.1:{port}"

    def blocking(client: DeepSeek, num: int) -> None:
        for _ in range(num):
            client.chat.completions.stream(messages=MESSAGES, model="m").until_done()

    async def with_asyncio(client: AsyncDeepSeek, num: int) -> None:
        for _ in range(num):
            await client.chat.completions.stream(messages=MESSAGES, model="m").until_done()

    with DeepSeek(base_url=url) as client:
        before = num_connections(port) + 1
        blocking(client, 20)
        budget("connections, 20 streams", num_connections(port) - before, 1)
        flat("blocking", num, [_timed(lambda: blocking(client, num // 10)) for _ in range(11)])

    async def measure() -> list[tuple[float, float]]:
        async with AsyncDeepSeek(base_url=url) as client:
            before = num_connections(port) + 1
            await with_asyncio(client, 20)
            budget("connections, 20 async streams", num_connections(port) - before, 1)
            readings: list[tuple[float, float]] = []
            for _ in range(11):
                began = time.perf_counter()
                await with_asyncio(client, num // 10)
                readings.append((rss_mb(), time.perf_counter() - began))
            return readings

    flat("async", num, asyncio.run(measure()))


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    began = time.perf_counter()
    work()
    return rss_mb(), time.perf_counter() - began


def flat(name: str, num: int, readings: list[tuple[float, float]]) -> None:
    """What the memory grew by, after a first tenth that warms up."""
    sizes = [size for size, _ in readings]
    print(f"{name}: MB after each {num // 10} streams: {' '.join(f'{size:.1f}' for size in sizes)}")
    print(f"{name}: {sum(seconds for _, seconds in readings[1:]):.0f} s for {num} streams")
    budget(f"MB over {num} {name}", sizes[-1] - sizes[0], 5)


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
    budget("wheel, kB", size / 1e3, 150)


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000, help="streams read for the memory figure, of each kind")
    parser.add_argument("--imports", type=int, default=15, help="processes for each import")
    arguments = parser.parse_args()
    names = ("httpx", "pydantic", "openai")
    found = [f"{name} {metadata.version(name)}" for name in names if importlib.util.find_spec(name)]
    print(f"Python {platform.python_version()}, {', '.join(found)}, load {os.getloadavg()[0]:.1f}")
    with served() as port:
        imports(arguments.imports, port)
        chunks()
        calls()
        streams(port, arguments.streams)
    wheel()


if __name__ == "__main__":
    main()
