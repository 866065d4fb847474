"""Start all targets, take every measure of each in turn, stop them."""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from deepseek_gateway.bench.keys import KeyBench
from deepseek_gateway.bench.load import Endpoint, LoadError
from deepseek_gateway.bench.measures import Figures, Plan, Results, is_beyond, measures, warm_up
from deepseek_gateway.bench.report import add_differences
from deepseek_gateway.bench.targets import (
    Target,
    litellm_environment,
    start_engine,
    start_litellm,
    start_ours,
    temporary_folder,
)

MEASURE_TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Which targets take part; `litellm` is a virtual environment, None is one in the cache folder."""

    with_litellm: bool = True
    litellm: Path | None = None


def run(plan: Plan, choice: Choice) -> tuple[Results, list[Target]]:
    """Take all measures.

    Raises:
        BenchError: a target does not start.
    """
    results = Results()
    with temporary_folder() as name, _running(plan, choice, Path(name)) as targets:
        for target in targets:
            _note(f"warming up {target.name}")
            results.add(target.name, _await(warm_up(target, plan.seconds)))
            for seconds in target.start_s:
                results.add(target.name, {"start_s": seconds})
            results.add(target.name, {"rss_idle_mib": target.rss_idle_mib})
        for turn in range(plan.rounds):
            for measure, take in measures(plan):
                _note(f"round {turn + 1} of {plan.rounds}: {measure}")
                for target in targets:
                    if is_beyond(target, measure, results):
                        results.faults.setdefault(f"{target.name} {measure}", "more than it can do")
                        continue
                    try:
                        results.add(target.name, _await(take(target)))
                    except (LoadError, OSError, TimeoutError, ZeroDivisionError) as error:
                        results.faults[f"{target.name} {measure}"] = str(error)[:300] or type(error).__name__
        for target in targets:
            if target.child is not None:
                results.add(target.name, {"rss_after_mib": target.child.rss_mib()})
        url = targets[0].endpoint.url
        benches = {number: KeyBench(url, Path(name) / f"keys-{number}", number) for number in plan.keys}
        for turn in range(plan.key_rounds):
            for number, bench in benches.items():
                _note(f"round {turn + 1} of {plan.key_rounds}: {number} keys")
                results.add("ours", bench.measure(turn, plan))
    add_differences(plan, results)
    return results, targets


@contextlib.contextmanager
def _running(plan: Plan, choice: Choice, folder: Path) -> Generator[list[Target]]:
    environment = litellm_environment(choice.litellm) if choice.with_litellm else None
    with contextlib.ExitStack() as stack:
        engine, url = start_engine()
        stack.callback(engine.stop)
        targets = [Target("direct", Endpoint(url, ("sk-none",)), None)]
        _note("starting ours")
        targets.append(start_ours(url, folder, plan.starts))
        if targets[-1].child is not None:
            stack.callback(targets[-1].child.stop)
        if environment is not None:
            _note("starting litellm")
            targets.append(start_litellm(url, folder, plan.starts, environment))
            if targets[-1].child is not None:
                stack.callback(targets[-1].child.stop)
        yield targets


def _await(work: Awaitable[Figures]) -> Figures:
    async def within() -> Figures:
        return await asyncio.wait_for(work, MEASURE_TIMEOUT_S)

    return uvloop.run(within())


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
