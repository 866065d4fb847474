"""The order of a run: server, prompts, warm-up, load, report."""

import asyncio
import json
import random
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Final

import aiohttp

from deepseek_engine.bench.serving.http_client import LoadClient, Target, first_model
from deepseek_engine.bench.serving.lengths import Lengths
from deepseek_engine.bench.serving.load import Send, arrival_times, closed_loop, open_loop
from deepseek_engine.bench.serving.options import ServingOptions
from deepseek_engine.bench.serving.own_server import ServerStartError, own_server
from deepseek_engine.bench.serving.plot import write_plot
from deepseek_engine.bench.serving.prompts import DatasetError, Prompt, file_prompts, token_prompts, word_prompts
from deepseek_engine.bench.serving.record import Record
from deepseek_engine.bench.serving.report import document, table, write_json
from deepseek_engine.bench.serving.summary import summarize
from deepseek_engine.event_loops import loop_factory

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as shells have it."""


class SetupError(Exception):
    """Nothing was measured."""


def run_serving(options: ServingOptions) -> int:
    """Measure and report.

    Returns:
        the exit status: 0; 1 if nothing could be measured or no answer was whole; 130 after Ctrl-C.
    """
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_run(options))
    except (SetupError, DatasetError, ServerStartError, OSError) as error:
        print(f"deepseek-bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before there was anything to report
        return INTERRUPTED


async def _run(options: ServingOptions) -> int:
    warmups, prompts = make_prompts(options)
    async with AsyncExitStack() as stack:
        base_url = options.base_url
        if base_url is None:
            assert options.model is not None, "argparse asks for one of them"
            server = own_server(options.model, options.server_args, options.start_timeout_s)
            base_url = f"{await stack.enter_async_context(server)}/v1"
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
        target = await _target(session, base_url, options)
        await _warm_up(session, target, warmups)
        records: list[Record] = []
        was_stopped = await _measure(session, target, prompts, options, records)
    return _report(options, target, records, was_stopped)


def make_prompts(options: ServingOptions) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts of the warm-up and of the measurement: drawn apart, so that the one does not fill the other's cache."""
    lengths = options.output_tokens
    measured, warming = random.Random(options.seed), random.Random(f"warm-up {options.seed}")  # noqa: S311 - no secrets
    if options.dataset is not None:
        prompts = file_prompts(options.dataset, options.num_requests, lengths, measured)
        warmups = word_prompts(options.warmup, options.prompt_tokens, lengths or Lengths.parse("16"), warming)
        return warmups, prompts
    assert lengths is not None, "options fill it in"
    shared = options.shared_prefix_tokens

    def draw(count: int, rng: random.Random) -> list[Prompt]:
        if options.prompts == "words":
            return word_prompts(count, options.prompt_tokens, lengths, rng, shared)
        return token_prompts(count, options.prompt_tokens, lengths, rng, options.vocab_size, shared)

    return draw(options.warmup, warming), draw(options.num_requests, measured)


async def _target(session: aiohttp.ClientSession, base_url: str, options: ServingOptions) -> Target:
    extra = {"temperature": options.temperature, **({"ignore_eos": True} if options.ignore_eos else {})}
    extra |= options.extra_body
    target = Target(base_url, options.endpoint, options.model_name, options.api_key, extra, options.timeout_s)
    if options.model_name is not None:
        return target
    try:
        return replace(target, model=await first_model(session, base_url, target.headers))
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
        raise SetupError(f"{base_url}/models cannot be read; is it a server? {error}") from error


async def _warm_up(session: aiohttp.ClientSession, target: Target, prompts: list[Prompt]) -> None:
    client = LoadClient(session, target, time.perf_counter)
    for prompt in prompts:
        record = Record(0, due_s=time.perf_counter())
        await client.send(prompt, record)
        if not record.is_whole and record.failure != "empty answer":
            raise SetupError(f"the warm-up failed, so nothing was measured: {record.failure}: {record.detail}")


async def _measure(
    session: aiohttp.ClientSession,
    target: Target,
    prompts: list[Prompt],
    options: ServingOptions,
    records: list[Record],
) -> bool:
    """Put on the load; returns whether it was stopped by a signal."""
    start_s = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - start_s

    send: Send = LoadClient(session, target, now).send
    if options.request_rate is not None:
        rng = random.Random(f"arrivals {options.seed}")  # noqa: S311 - no secret
        due_s = arrival_times(len(prompts), options.request_rate, rng, options.burstiness)
        load = open_loop(prompts, due_s, send, now, records)
    else:
        assert options.concurrency is not None, "argparse asks for one of them"
        load = closed_loop(prompts, options.concurrency, send, now, records)
    task = asyncio.ensure_future(load)
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        with suppress(asyncio.CancelledError):
            await task
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
    return task.cancelled()


def _report(options: ServingOptions, target: Target, records: list[Record], was_stopped: bool) -> int:
    summary = summarize(records, options.num_requests, options.goodput)
    settings = {**options.to_json(), "base_url": target.base_url, "model_name": target.model}
    load = f"{options.request_rate:g} requests/s" if options.request_rate else f"concurrency {options.concurrency}"
    title = f"{target.model or target.base_url}, {target.endpoint}, {load}"
    print(f"{title}\n{table(summary)}", flush=True)
    if options.output is not None:
        write_json(options.output, document(settings, summary, records))
    if options.plot is not None:
        write_plot(options.plot, records, title)
    print(json.dumps(document(settings, summary)))
    if was_stopped:
        return INTERRUPTED
    return 0 if summary.num_whole else 1
