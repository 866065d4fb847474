"""Flags of `deepseek-bench serving`."""

import argparse
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from deepseek_engine.bench.serving.lengths import Lengths
from deepseek_engine.bench.serving.summary import GOALS
from deepseek_engine.shapes import PREFIX, SHAPES

_DEFAULT_LENGTH = Lengths.parse("128")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """One run, as the flags have it."""

    base_url: str | None
    model: str | None
    server_args: list[str]
    start_timeout_s: float
    request_rate: float | None
    burstiness: float
    concurrency: int | None
    endpoint: str
    model_name: str | None
    api_key: str | None
    prompts: str
    dataset: Path | None
    prompt_tokens: Lengths
    output_tokens: Lengths | None
    shared_prefix_tokens: int
    vocab_size: int
    num_requests: int
    warmup: int
    seed: int
    ignore_eos: bool
    temperature: float
    extra_body: dict[str, Any]
    timeout_s: float
    goodput: dict[str, float]
    output: Path | None
    plot: Path | None

    def to_json(self) -> dict[str, Any]:
        """What a reader of the results needs to know; never the key."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("api_key", "output")}
        return {name: _plain(value) for name, value in shown.items()}


def add_serving_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command's flags; `add_parser` is that of the program's subparsers."""
    parser = add_parser(
        "serving",
        help="latency, throughput and goodput of an OpenAI-compatible server under load",
        epilog="Lengths are 128, uniform:64:512, normal:256:64 (mean, deviation) or lognormal:256:0.8 (median, sigma).",
        allow_abbrev=False,
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--base-url", type=_base_url, help="of a running server, as http://127.0.0.1:8080/v1")
    target.add_argument("--model", "--model-path", help="start a deepseek-server of our own on this model")
    target.add_argument("--shape", choices=list(SHAPES), help="the same, with random weights and prompts of token ids")
    parser.add_argument("--server-args", type=shlex.split, default=[], metavar="FLAGS", help="for the own server")
    parser.add_argument("--start-timeout", dest="start_timeout_s", type=_positive, default=300.0, metavar="SECONDS")
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--request-rate", type=_rate, metavar="PER_S", help="open loop: arrivals a second, or inf")
    load.add_argument("--concurrency", type=_count, help="closed loop: requests under way at all times")
    parser.add_argument("--burstiness", type=_positive, default=1.0, help="of --request-rate; 1 is a Poisson process")
    parser.add_argument("--endpoint", choices=("chat", "completions"), help="chat, or completions for token prompts")
    parser.add_argument("--model-name", help="the requests' model; by default the first that the server lists")
    parser.add_argument("--api-key", default=os.environ.get("DEEPSEEK_API_KEY"), help="or DEEPSEEK_API_KEY")
    parser.add_argument("--prompts", choices=("words", "tokens"), default="words", help="random words, or token ids")
    parser.add_argument("--dataset", type=Path, metavar="FILE.jsonl", help="prompts of a file instead, as ShareGPT's")
    parser.add_argument("--prompt-tokens", type=_lengths, default=_DEFAULT_LENGTH, metavar="LENGTHS")
    parser.add_argument("--output-tokens", type=_lengths, metavar="LENGTHS", help="128, or the file's own lengths")
    parser.add_argument("--shared-prefix-tokens", type=int, default=0, help="words or ids that all begin with")
    parser.add_argument("--vocab-size", type=_count, default=32000, help="of --prompts tokens: ids are below it")
    parser.add_argument("--num-requests", type=_count, default=200)
    parser.add_argument("--warmup", type=int, default=2, help="requests sent one by one beforehand and not counted")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, lengths and arrivals")
    parser.add_argument("--ignore-eos", action="store_true", help="always the full length; the server has to know it")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--extra-body", type=_json_object, default={}, metavar="JSON", help="more fields of requests")
    parser.add_argument("--timeout", dest="timeout_s", type=_positive, default=600.0, help="seconds of one request")
    parser.add_argument("--goodput", type=_goal, nargs="+", default=[], metavar="NAME:MS", help="ttft, tpot, e2e")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="all results, with each request's times")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="latencies and load over time, as a picture")


def serving_options(options: argparse.Namespace, parser: argparse.ArgumentParser) -> ServingOptions:
    """Check what one flag alone cannot know."""
    if options.shape is not None:  # its tokens are numbers: words mean nothing to it
        if options.dataset is not None or options.endpoint == "chat":
            parser.error("--shape takes token ids only: leave --dataset and --endpoint chat out")
        options.model, options.prompts = f"{PREFIX}{options.shape}", "tokens"
        options.vocab_size = SHAPES[options.shape]["vocab_size"]
    values = {name: value for name, value in vars(options).items() if name not in ("command", "shape")}
    if options.endpoint is None:
        values["endpoint"] = "completions" if options.prompts == "tokens" else "chat"
    elif options.endpoint == "chat" and options.prompts == "tokens":
        parser.error("--prompts tokens needs --endpoint completions: a chat message is text")
    if min(options.warmup, options.shared_prefix_tokens) < 0:
        parser.error("--warmup and --shared-prefix-tokens must not be negative")
    if options.server_args and options.model is None:
        parser.error("--server-args needs --model or --shape: only an own server takes flags")
    if options.dataset is None and options.output_tokens is None:
        values["output_tokens"] = _DEFAULT_LENGTH
    for path in (options.output, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no such folder")
    values["goodput"] = dict(options.goodput)
    return ServingOptions(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Lengths):
        return value.text
    return str(value) if isinstance(value, Path) else value


def _base_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is no URL: write http://127.0.0.1:8080/v1")
    return text.rstrip("/")


def _lengths(text: str) -> Lengths:
    try:
        return Lengths.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _positive(text: str) -> float:
    value = _rate(text)
    if value == float("inf"):
        raise argparse.ArgumentTypeError("must be finite")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def _goal(text: str) -> tuple[str, float]:
    name, _, most = text.partition(":")
    if name not in GOALS:
        raise argparse.ArgumentTypeError(f"{text!r}: write one of {', '.join(GOALS)}, a colon and milliseconds")
    return name, _positive(most)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return cast("dict[str, Any]", value)
