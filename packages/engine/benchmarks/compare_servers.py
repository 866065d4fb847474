r"""Several servers of one model, side by side: started with their own commands, measured in turn, round by round.

    python packages/engine/benchmarks/compare_servers.py --rounds 5 --baseline llama.cpp \
        --server "ours=deepseek-server --model-path smollm2 --port {port}" \
        --server "llama.cpp=llama-server -m SmolLM2.BF16.gguf --port {port} -np 16 -c 20480 -t 2"

All servers stay up, idle but for the one that is measured, so that a machine that drifts drifts for all of them. Each
round asks each server over HTTP (`/v1/completions`, streamed, greedy, prompts of random token ids, no two alike,
answers of full length): prompts of 128 and of 1024 tokens for one token, one request of 128 + 128, and 16 of them at
once. Prints medians [least-greatest] and each round's ratio to the baseline, then one line of JSON.
"""

import argparse
import asyncio
import json
import random
import shlex
import signal
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from deepseek_engine.bench.serving.http_client import LoadClient, Target, first_model
from deepseek_engine.bench.serving.prompts import Prompt
from deepseek_engine.bench.serving.record import Record

START_TIMEOUT_S = 900
REST_S = 1.0
"""Between servers: one that has just answered may still be busy with it."""

IDLE_SHARE = 0.05
"""Of one core: what a server may use while another is measured, before it is remarked upon."""
MEASURES = {
    "ttft_128_ms": "first token of 128, ms",
    "decode_1": "decode at batch 1, tokens/s",
    "output_16": "16 concurrent, output tokens/s",
    "prefill_1024": "prefill of 1024, tokens/s",
}


@dataclass
class Server:
    """One of the servers, and what was measured of it."""

    name: str
    command: list[str]
    base_url: str = ""
    model: str | None = None
    process: psutil.Popen | None = None
    start_s: float = 0.0
    peak_mib: float = 0.0
    idle_cpu_s: float = 0.0
    found: dict[str, list[float]] = field(default_factory=dict)

    def tree(self) -> list[psutil.Process]:
        """Its processes."""
        assert self.process is not None
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        """Processor time that it has used."""
        return sum(sum(process.cpu_times()[:2]) for process in self.tree())

    def note_memory(self) -> None:
        """Memory of its processes now, if it is more than before. Pages that they share count once for each."""
        self.peak_mib = max(self.peak_mib, sum(process.memory_info().rss for process in self.tree()) / 2**20)


class Asker:
    """Sends requests with prompts that were never sent before."""

    def __init__(self, session: aiohttp.ClientSession, vocab_size: int) -> None:
        self._session = session
        self._random = random.Random(0)
        self._vocab_size = vocab_size

    async def ask(self, server: Server, count: int, prompt_tokens: int, output_tokens: int) -> list[Record]:
        """`count` requests at once; raises RuntimeError if one fails."""
        extra = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}
        target = Target(server.base_url, "completions", server.model, None, extra, START_TIMEOUT_S)
        client = LoadClient(self._session, target, time.perf_counter)
        records = [Record(index, time.perf_counter()) for index in range(count)]
        prompts = [
            Prompt([self._random.randrange(100, self._vocab_size) for _ in range(prompt_tokens)], output_tokens)
            for _ in range(count)
        ]
        await asyncio.gather(*(client.send(p, r) for p, r in zip(prompts, records, strict=True)))
        for record in records:
            is_whole = record.failure in (None, "empty answer")  # one token may be but a part of a character
            if not is_whole or record.output_tokens != output_tokens:
                raise RuntimeError(f"{server.name}: {record.failure} {record.output_tokens} tokens")
        return records


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def spawn(command: list[str], log_path: Path) -> psutil.Popen:
    """Start a program that writes to a log."""
    with log_path.open("wb") as log:
        return psutil.Popen(command, stdout=log, stderr=log, start_new_session=True)


async def start(server: Server, asker: Asker, session: aiohttp.ClientSession) -> None:
    """Start a server; its start ends with its first token."""
    port = free_port()
    command = [word.replace("{port}", str(port)) for word in server.command]
    server.base_url = f"http://127.0.0.1:{port}/v1"
    begun_s = time.perf_counter()
    server.process = spawn(command, Path(f"server-{server.name}.log"))
    while True:
        if server.process.poll() is not None or time.perf_counter() - begun_s > START_TIMEOUT_S:
            raise RuntimeError(f"{server.name} did not start: see server-{server.name}.log")
        try:
            server.model = await first_model(session, server.base_url, {})
            await asker.ask(server, 1, 128, 2)
        except (RuntimeError, OSError, aiohttp.ClientError):
            await asyncio.sleep(0.05)
        else:
            server.start_s = time.perf_counter() - begun_s
            return


async def seconds_to_first_token(server: Server, asker: Asker, prompt_tokens: int) -> float:
    """From sending a request for one token to its end."""
    begun_s = time.perf_counter()
    await asker.ask(server, 1, prompt_tokens, 1)
    return time.perf_counter() - begun_s


async def measure(server: Server, asker: Asker) -> dict[str, float]:
    """One round of one server."""
    short_s = await seconds_to_first_token(server, asker, 128)
    (one,) = await asker.ask(server, 1, 128, 128)
    begun_s = time.perf_counter()
    many = await asker.ask(server, 16, 128, 128)
    together_s = max(record.end_s for record in many) - begun_s
    long_s = await seconds_to_first_token(server, asker, 1024)
    server.note_memory()
    return {
        "ttft_128_ms": 1000 * short_s,
        "decode_1": (one.output_tokens - 1) / (one.token_s[-1] - one.token_s[0]),
        "output_16": sum(record.output_tokens for record in many) / together_s,
        "prefill_1024": 1024 / long_s,
    }


async def run(servers: Sequence[Server], rounds: int, vocab_size: int) -> None:
    """Start all, measure in turn, stop all."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # some servers close kept connections unasked
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        asker = Asker(session, vocab_size)
        try:
            for server in servers:
                await start(server, asker, session)
                await measure(server, asker)  # warms up
                print(f"{server.name}: {server.start_s:.1f} s to the first token", flush=True)
            for number in range(rounds):
                for server in servers:
                    await asyncio.sleep(REST_S)
                    others = [other for other in servers if other is not server]
                    before_s = {other.name: other.cpu_s() for other in others}
                    for name, value in (await measure(server, asker)).items():
                        server.found.setdefault(name, []).append(value)
                    for other in others:
                        other.idle_cpu_s += other.cpu_s() - before_s[other.name]
                print(f"round {number + 1} of {rounds} is done", flush=True)
        finally:
            for server in servers:
                stop(server)


def stop(server: Server) -> None:
    """End a server and all that it started."""
    if server.process is None:
        return
    tree = server.tree() if server.process.poll() is None else []
    for process in tree:
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(tree, timeout=20)
    for process in alive:
        process.kill()


def report(servers: Sequence[Server], baseline: Server) -> None:
    """The tables."""
    width = max(len(server.name) for server in servers)
    for measure_name, title in MEASURES.items():
        print(f"\n{title}")
        for server in servers:
            values, base = server.found[measure_name], baseline.found[measure_name]
            ratios = [value / other for value, other in zip(values, base, strict=True)]
            print(
                f"  {server.name:<{width}}  {statistics.median(values):8.1f} [{min(values):.1f}-{max(values):.1f}]   "
                f"{statistics.median(ratios):5.2f}x [{min(ratios):.2f}-{max(ratios):.2f}] of {baseline.name}"
            )
    print("\nprocess start to first token, and peak memory")
    for server in servers:
        print(f"  {server.name:<{width}}  {server.start_s:6.1f} s  {server.peak_mib:7.0f} MiB")
    for server in servers:
        if server.idle_cpu_s > IDLE_SHARE * len(server.found["decode_1"]):
            print(f"note: {server.name} used {server.idle_cpu_s:.2f} s of processor time while others were measured")
    rows = {s.name: {"start_s": s.start_s, "peak_mib": s.peak_mib, **s.found} for s in servers}
    print(json.dumps({"baseline": baseline.name, "servers": rows}))


def main() -> None:
    """Compare the servers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=COMMAND", help="with {port} in it")
    parser.add_argument("--baseline", required=True, metavar="NAME", help="the server that others are divided by")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=49000, help="token ids of prompts are below it")
    options = parser.parse_args()
    servers = [Server(name, shlex.split(command)) for name, _, command in (s.partition("=") for s in options.server)]
    baseline = next((server for server in servers if server.name == options.baseline), None)
    if baseline is None:
        sys.exit(f"--baseline {options.baseline} is none of the servers")
    asyncio.run(run(servers, options.rounds, options.vocab_size))
    report(servers, baseline)


if __name__ == "__main__":
    main()
