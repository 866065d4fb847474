"""What a token costs the server and the core, beside the model, when many streams are read at once.

    python packages/engine/benchmarks/server_overhead.py --streams 256 --step-ms 9

Starts `idle_server.py` and reads N streamed answers over its sockets, from this process. Counts all tokens and all
events that come while every stream runs, the CPU time that the two processes take for them, and the gaps between the
reads of each stream that brought text. `keeps_up` is how many tokens came of those that steps of that length could
make: with fewer cores than processes it says nothing of a machine that has them, and the CPU time a token does.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

PROMPT_TOKENS = 128
WARM_UP_S = 1.0


class Meter:
    """What came while `is_on`."""

    def __init__(self) -> None:
        self.is_on = False
        self.num_open = 0
        self.refusal: bytes | None = None
        self.num_tokens = 0
        self.num_events = 0
        self.num_reads = 0
        self.gaps_s: list[float] = []


class StreamReader(asyncio.Protocol):
    """Reads one answer. Its tokens are words, each with the space before it; nothing else has one but `data: `."""

    def __init__(self, request: bytes, meter: Meter) -> None:
        self._request = request
        self._meter = meter
        self._last_s: float | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self.transport = transport  # type: ignore[assignment]
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Count."""
        now_s, meter = time.perf_counter(), self._meter
        if self._last_s is None:
            if not data.startswith(b"HTTP/1.1 200"):
                meter.refusal = data
            meter.num_open += 1
        elif meter.is_on:
            num_events = data.count(b"data: ")
            meter.num_events += num_events
            meter.num_tokens += data.count(b" ") - num_events
            meter.num_reads += 1
            meter.gaps_s.append(now_s - self._last_s)
        self._last_s = now_s


def request_of(endpoint: str, host: str, rng: random.Random, max_tokens: int, extra: dict[str, Any]) -> bytes:
    """A request over HTTP/1.1."""
    body: dict[str, Any] = {"stream": True, "max_tokens": max_tokens, "ignore_eos": True, **extra}
    if endpoint == "chat/completions":
        body["messages"] = [{"role": "user", "content": f"Say {rng.random()}."}]
    elif endpoint == "generate":
        body["prompt"] = f"Say {rng.random()}."
    else:
        body["prompt"] = rng.choices(range(10, 40_000), k=PROMPT_TOKENS)
    content = json.dumps(body).encode()
    head = f"POST /v1/{endpoint} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def cpu_s(process_id: int) -> float:
    """CPU time of a process so far, all threads, system included."""
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def idle_server(options: argparse.Namespace) -> Generator[dict[str, Any]]:
    """Runs `idle_server.py`; what it says when it is ready."""
    program = options.server or str(Path(__file__).with_name("idle_server.py"))
    flags = ["--sequences", str(options.streams), "--step-ms", str(options.step_ms), "--model", options.model]
    command = [sys.executable, program, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.terminate()  # a second signal ends what still runs
        process.wait()


async def measure(options: argparse.Namespace, server: dict[str, Any]) -> dict[str, Any]:
    """Put on the load, wait until it is even, and count."""
    meter, rng, loop = Meter(), random.Random(0), asyncio.get_running_loop()
    address = urlsplit(server["url"])
    num_steps = int((options.seconds + 30) / (options.step_ms / 1000)) + 1000
    extra: dict[str, Any] = json.loads(options.extra_body)
    readers: list[StreamReader] = []
    for _ in range(options.streams):
        request = request_of(options.endpoint, address.netloc, rng, min(num_steps, 8000), extra)
        _, reader = await loop.create_connection(
            lambda request=request: StreamReader(request, meter), address.hostname, address.port
        )
        readers.append(reader)
    async with asyncio.timeout(60):
        while meter.num_open < options.streams:  # noqa: ASYNC110 - once, before anything is measured
            await asyncio.sleep(0.05)
    if meter.refusal is not None:
        raise SystemExit(f"the server refused: {meter.refusal[:500]!r}")
    await asyncio.sleep(WARM_UP_S)
    start_s, before = time.perf_counter(), [cpu_s(server["server"]), cpu_s(server["core"]), time.process_time()]
    meter.is_on = True
    await asyncio.sleep(options.seconds)
    meter.is_on = False
    took_s = time.perf_counter() - start_s
    after = [cpu_s(server["server"]), cpu_s(server["core"]), time.process_time()]
    for reader in readers:
        assert reader.transport is not None
        reader.transport.abort()
    spent = [later - sooner for sooner, later in zip(before, after, strict=True)]
    quantiles = statistics.quantiles([1000 * gap for gap in meter.gaps_s], n=100)
    us_per_token = [1e6 * each / meter.num_tokens for each in spent]
    return {
        "streams": options.streams,
        "step_ms": options.step_ms,
        "tokens_per_s": round(meter.num_tokens / took_s),
        "keeps_up": round(meter.num_tokens / took_s * options.step_ms / 1000 / options.streams, 3),
        "server_us_per_token": round(us_per_token[0], 1),
        "core_us_per_token": round(us_per_token[1], 1),
        "reader_us_per_token": round(us_per_token[2], 1),
        "server_cores": round(spent[0] / took_s, 2),
        "events_per_token": round(meter.num_events / meter.num_tokens, 3),
        "reads_per_token": round(meter.num_reads / meter.num_tokens, 3),
        "gap_ms_p50": round(quantiles[49], 1),
        "gap_ms_p95": round(quantiles[94], 1),
        "gap_ms_p99": round(quantiles[98], 1),
    }


def main() -> None:
    """Measure, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=9.0, help="how long the core pretends that a step takes")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured, after the streams have begun")
    parser.add_argument("--endpoint", choices=("completions", "chat/completions", "generate"), default="completions")
    parser.add_argument("--model", default="smollm2", help="whose tokenizer; shape:seed-3.4b has one of numbers")
    parser.add_argument("--extra-body", default="{}", metavar="JSON", help="more fields of requests")
    parser.add_argument("--server", help="another program with the flags of idle_server.py")
    options = parser.parse_args()
    with idle_server(options) as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        row = runner.run(measure(options, server))
    versions = {name: re.sub(r"\+.*", "", _version(name)) for name in ("uvicorn", "uvloop", "httptools", "msgspec")}
    row |= {"endpoint": options.endpoint, "model": options.model, "python": platform.python_version(), **versions}
    for name, value in row.items():
        print(f"{name:<22}{value}")
    print(json.dumps(row))


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


if __name__ == "__main__":
    main()
