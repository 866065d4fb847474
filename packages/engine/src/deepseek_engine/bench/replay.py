"""`deepseek-bench replay`: run a request log again and compare the tokens."""

import argparse
import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from tqdm import tqdm

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.grammar.store import GrammarStore, load_backend_of
from deepseek_engine.request_log.reader import RecordedRun, read_request_log
from deepseek_engine.request_log.replay import Comparison, Replay, changes_since, replay_config

MAX_SHOWN: Final = 20
"""Differences that are printed; all are counted."""


def add_replay_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command's flags; `add_parser` is that of the program's subparsers."""
    parser = add_parser(
        "replay",
        help="run a request log of deepseek-server again, without a server, and compare the tokens",
        epilog="The exit status is 1 if an answer differs, or a line of the log cannot be read.",
        allow_abbrev=False,
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="parts of one run's log, the oldest first")
    parser.add_argument("--model-path", help="the model, where it is not at the recorded place")
    parser.add_argument(
        "--timing",
        choices=("none", "recorded"),
        default="none",
        help="none: one after the other, as fast as they are computed; recorded: each at its time",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        type=_override,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value for a field of EngineConfig, as max_num_seqs=1; repeatable",
    )


def run_replay(options: argparse.Namespace) -> int:
    """Replay, print what differs and one line of JSON; the exit status.

    Raises:
        EngineError: the log cannot be read, or the model not be loaded.
    """
    run = read_request_log(options.files)
    overrides: dict[str, object] = dict(options.overrides)
    if options.model_path is not None:
        overrides["model"] = options.model_path
    config = replay_config(run.header, overrides)
    wake = threading.Event()
    engine = _start(config, wake)
    print(f"{len(run.requests)} requests of {run.header.started_at}, {run.header.config.model}")
    for change in changes_since(run.header, config, engine.info):
        print(f"not as recorded: {change}")
    with tqdm(total=len(run.requests), unit="request", disable=None) as bar:
        replay = Replay(engine, run, wake, timing=options.timing, max_open=2 * config.max_num_seqs, on_end=bar.update)
        comparison = replay.run()
    return _report(run, comparison)


def _start(config: EngineConfig, wake: threading.Event) -> Engine:
    from deepseek_engine.model_runner import build_runner  # loads torch, which a log that is none need not wait for

    runner = build_runner(config)
    grammars = GrammarStore(partial(load_backend_of, config.model, runner.info.vocab_size), on_ready=wake.set)
    return Engine(config, runner, wake=wake.set, grammars=grammars)


def _report(run: RecordedRun, comparison: Comparison) -> int:
    problems = [*run.unreadable, *comparison.differences]
    for problem in problems[:MAX_SHOWN]:
        print(problem)
    if len(problems) > MAX_SHOWN:
        print(f"and {len(problems) - MAX_SHOWN} more")
    if run.is_cut:
        print("the last line is cut off and was left out")
    if run.num_orphans:
        print(f"{run.num_orphans} ends are of requests that are not in these files")
    print(
        f"{comparison.num_equal} of {comparison.num_answers} answers are equal, {comparison.num_early} of them up to "
        f"where they were ended early; {len(comparison.differences)} differ; "
        f"{comparison.num_without_end} have no end in the log"
    )
    summary = {
        "requests": len(run.requests),
        "answers": comparison.num_answers,
        "equal": comparison.num_equal,
        "ended_early": comparison.num_early,
        "different": len(comparison.differences),
        "without_end": comparison.num_without_end,
        "unreadable_lines": len(run.unreadable),
        "is_cut": run.is_cut,
    }
    print(json.dumps(summary))
    return 1 if problems else 0


def _override(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, None if value == "none" else value
