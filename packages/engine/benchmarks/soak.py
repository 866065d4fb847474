"""A server under random load for a long time: does it stay whole?

    python packages/engine/benchmarks/soak.py --minutes 20 --output result.md

Runs `deepseek-server` as a process, with a KV cache so small that prompts preempt each other, and puts mixed requests
on it: streamed and whole, several answers, log-probabilities, grammars, adapters that come and go, scoring, embeddings,
wrong ones; a third of the callers hang up or abort. At the end the server has to be as it was: memory flat, every KV
block free, every request logged with exactly one end, no file descriptor left, and the same answer to the same
question. The exit status is 1 if anything of this fails.
"""

import argparse
import asyncio
import json
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import aiohttp
import psutil
from soak_load import WEIGHTS, Asker, Callers, Tally
from soak_watch import (
    Sample,
    ends_by_id,
    growth_mib_per_h,
    series,
    take_sample,
    unusual_lines,
    wait_idle,
)

import deepseek_engine
from deepseek_engine.testing.adapters import write_tiny_adapter
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint

START_S = 120.0
SAMPLE_S = 5.0
MAX_GROWTH = 0.03
"""Share of its memory by which a process may grow between warm-up and end. An allocator's fragments take a while."""
QUESTION = {"prompt": "alpha beta gamma", "max_tokens": 24, "temperature": 0, "ignore_eos": True}


@contextmanager
def server(model: str, context: int, folder: Path, arguments: list[str]) -> Iterator[tuple[psutil.Process, str, Path]]:
    """Run the server; its process, base URL and log."""
    log = folder / "server.log"
    command = [
        sys.executable, "-m", "deepseek_engine.server", "--model-path", model, "--served-model-name", "soak",
        "--port", "0", "--max-model-len", str(context), "--threads", "1", "--max-batch-size", "16", *arguments,
    ]  # fmt: skip
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:  # noqa: S603 - our own
        try:
            yield psutil.Process(process.pid), wait_ready(process, log), log
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The server's base URL, once it takes connections."""
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and process.poll() is None:
        if found := re.search(r"ready on (http://\S+?):? model=", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise SystemExit("the server did not start:\n" + log.read_text())


async def soak(
    process: psutil.Process, base_url: str, log: Path, options: argparse.Namespace, names: list[str]
) -> bool:
    """Load, look, judge, report; whether all is well."""
    rng, tally, samples = random.Random(options.seed), Tally(), list[Sample]()
    asker = Asker(rng, options.context, 1 if options.model == "tiny" else 4, names, options.without)
    start_s = time.monotonic()
    async with fresh_session() as session:
        for name in names:
            await post(session, f"{base_url}/v1/load_lora_adapter", {"lora_name": name.partition(":")[2]})
    async with fresh_session() as session:  # a little of everything first: helpers start, caches fill
        await Callers(session, base_url, asker, tally, rng).run(8, options.warmup)
        await wait_idle(session, base_url, 60)
        before = await answer(session, base_url)
    await asyncio.sleep(1)  # the server notices closed connections when its loop comes round
    idle_before = take_sample(process, start_s)
    watching = asyncio.create_task(watch(process, start_s, samples))
    async with fresh_session() as session:
        changing = asyncio.create_task(change_adapters(session, base_url, names, rng))
        await Callers(session, base_url, asker, tally, rng).run(options.callers, 60 * options.minutes)
        changing.cancel()
        metrics = await wait_idle(session, base_url, 60)
        after = await answer(session, base_url)
    watching.cancel()
    await asyncio.sleep(1)
    idle_after = take_sample(process, start_s)
    checks = judge(tally, samples, idle_before, idle_after, metrics, log) | {
        "the same question has the same answer": (before == after, repr(before[:40]))
    }
    report(options, tally, samples, metrics, checks, unusual_lines(log))
    return all(passed for passed, _ in checks.values())


def fresh_session() -> aiohttp.ClientSession:
    """A client without limits."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=300))


async def watch(process: psutil.Process, start_s: float, samples: list[Sample]) -> None:
    """Take samples until cancelled."""
    while True:
        samples.append(take_sample(process, start_s))
        await asyncio.sleep(SAMPLE_S)


async def answer(session: aiohttp.ClientSession, base_url: str) -> str:
    """The greedy answer to a fixed question."""
    async with session.post(f"{base_url}/v1/completions", json=QUESTION) as response:
        response.raise_for_status()
        return (await response.json())["choices"][0]["text"]


async def change_adapters(session: aiohttp.ClientSession, base_url: str, names: list[str], rng: random.Random) -> None:
    """Unload and load adapters in turn, under those who use them."""
    while names:
        await asyncio.sleep(rng.expovariate(0.5))
        body = {"lora_name": rng.choice(names).partition(":")[2]}
        await post(session, f"{base_url}/v1/unload_lora_adapter", body)
        await post(session, f"{base_url}/v1/load_lora_adapter", body)


async def post(session: aiohttp.ClientSession, url: str, body: dict[str, str]) -> None:
    """Ask for something that a healthy server does."""
    async with session.post(url, json=body) as response:
        if response.status != 200:
            raise SystemExit(f"{url} {body}: {response.status} {await response.text()}")


def judge(
    tally: Tally,
    samples: list[Sample],
    idle_before: Sample,
    idle_after: Sample,
    metrics: dict[str, float],
    log: Path,
) -> dict[str, tuple[bool, str]]:
    """Each check with what was found."""
    ends = ends_by_id(log)
    lost = [each for each in tally.certain if ends[each] != 1]
    twice = [each for each in tally.uncertain if ends[each] > 1]
    unseen = sum(ends[each] == 0 for each in tally.uncertain)
    held = {name: metrics[name] for name in ("kv_blocks_used", "requests_running", "requests_waiting")}
    checks = {
        "every request has exactly one end": (
            not lost and not twice,
            f"{len(tally.certain)} answered, {len(tally.uncertain)} left before ({unseen} of them never seen by the "
            f"server); wrong: {lost[:3] + twice[:3]}",
        ),
        "no answer is a fault": (not tally.faults, f"{len(tally.faults)}: {tally.faults[:3]}"),
        "every KV block is free when idle": (not any(held.values()), str(held)),
        "the load preempted": (metrics["preemptions_total"] > 0, f"{metrics['preemptions_total']:.0f} times"),
        "no file descriptor is left": (
            idle_after.num_fds <= idle_before.num_fds,
            f"{idle_before.num_fds} idle before, {idle_after.num_fds} idle after",
        ),
        "no process and no thread is left": (
            idle_after.num_processes <= idle_before.num_processes,
            f"{idle_before.num_processes} processes, {idle_before.num_threads} threads before; "
            f"{idle_after.num_processes} and {idle_after.num_threads} after",
        ),
    }
    middle_s = (samples[0].at_s + samples[-1].at_s) / 2
    for attribute, name in (("api_mib", "HTTP process"), ("core_mib", "core process")):
        slope = growth_mib_per_h(samples, attribute, middle_s)
        grown, size = slope / 3600 * (samples[-1].at_s - middle_s), getattr(samples[-1], attribute)
        checks[f"memory of the {name} is flat"] = (
            grown <= MAX_GROWTH * size,
            f"{slope:+.1f} MiB an hour over the second half, {grown:+.2f} MiB of {size:.0f} within it",
        )
    return checks


def report(
    options: argparse.Namespace,
    tally: Tally,
    samples: list[Sample],
    metrics: dict[str, float],
    checks: dict[str, tuple[bool, str]],
    unusual: list[str],
) -> None:
    """Print the result, and write it where it was asked for."""
    shown = samples[:: max(len(samples) // 40, 1)]
    names = ("steps_total", "preemptions_total", "prompt_tokens_total", "generation_tokens_total", "requests_total")
    counts = ", ".join(f"{name.removesuffix('_total')} {metrics[name]:.0f}" for name in names)
    command = "python packages/engine/benchmarks/soak.py " + " ".join(
        f"--{name} {getattr(options, name)}" for name in ("model", "minutes", "callers", "seed")
    )
    text = "\n".join(
        [
            f"    {command}",
            "",
            f"deepseek-engine {deepseek_engine.__version__}, Python {platform.python_version()}, {platform.machine()}; "
            f"{sum(tally.kinds.values())} requests. The engine counted: {counts}.",
            "",
            "```",
            *(f"{'ok  ' if passed else 'FAIL'} {name}: {found}" for name, (passed, found) in checks.items()),
            "",
            f"asked: {dict(tally.kinds.most_common())}",
            f"ended: {dict(tally.outcomes.most_common())}",
            f"warnings and errors in the log: {len(unusual)}",
            *unusual[:10],
            "",
            series(shown),
            "```",
            "",
        ]
    )
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    print(json.dumps({"checks": checks, "outcomes": tally.outcomes, "metrics": metrics, "last": asdict(samples[-1])}))


def main() -> int:
    """Make the model, run the server, soak it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="`tiny` (random weights, adapters), or as a server's")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--warmup", type=float, default=60.0, help="seconds before the first look")
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the result here, as Markdown")
    kinds = ("adapters", *WEIGHTS)
    parser.add_argument("--without", nargs="+", default=[], choices=kinds, help="leave these out, to find a fault")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends as well
    with tempfile.TemporaryDirectory() as folder:
        model, names, arguments = options.model, list[str](), ["--kv-cache-memory", "30MiB"]
        if model == "tiny":
            shape = TinyModel(max_position_embeddings=options.context)
            model = str(write_tiny_checkpoint(Path(folder) / "model", shape))
            for index in range(0 if "adapters" in options.without else 6):
                write_tiny_adapter(Path(folder) / "adapters" / f"a{index}", shape, seed=index)
                names.append(f"soak:a{index}")
            arguments = ["--dtype", "float32", "--kv-cache-memory", "1MiB", "--enable-lora", "--max-loras", "4"]
            arguments += ["--lora-dir", f"{folder}/adapters", "--allow-lora-loading"]
        with server(model, options.context, Path(folder), arguments) as (process, base_url, log):
            return 0 if asyncio.run(soak(process, base_url, log, options, names)) else 1


if __name__ == "__main__":
    sys.exit(main())
