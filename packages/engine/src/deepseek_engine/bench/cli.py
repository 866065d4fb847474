"""`deepseek-bench`: benchmarks and replays that end in one line of JSON."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from deepseek_engine.bench.replay import add_replay_command, run_replay
from deepseek_engine.bench.serving.options import add_serving_command, serving_options
from deepseek_engine.bench.workload_options import add_workload_options, wants_workloads, workload_command
from deepseek_engine.config import DTYPES, QUANTIZATIONS, EngineConfig
from deepseek_engine.errors import EngineError
from deepseek_engine.model_source import DEFAULT_MODEL


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="deepseek-bench", description="Measure the engine, or replay what it did.")
    commands = parser.add_subparsers(dest="command", required=True)
    offline = commands.add_parser(
        "offline", help="prefill and decode rates and peak memory, or whole workloads, without a server"
    )
    offline.add_argument("--model-path", default=DEFAULT_MODEL, help="folder, .gguf file, hub id or built-in name")
    offline.add_argument("--dtype", default="auto", choices=DTYPES)
    offline.add_argument("--quantization", choices=QUANTIZATIONS[1:], help="store and multiply weights as int8")
    offline.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], metavar="N")
    offline.add_argument("--prompt-tokens", type=int, default=128)
    offline.add_argument("--output-tokens", type=int, default=128)
    offline.add_argument("--runs", type=int, default=3, help="measured runs of each batch size, after a warm-up")
    offline.add_argument("--threads", type=int, default=None, help="CPU threads; one a core by default")
    add_workload_options(offline)
    add_serving_command(commands.add_parser)
    add_replay_command(commands.add_parser)
    commands.add_parser("gateway", help="the gateway beside the engine alone and LiteLLM", add_help=False)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["gateway"]:
        return _gateway(given[1:])
    options = parser.parse_args(given)
    if options.command == "replay":
        return _status_of(lambda: run_replay(options))
    return _serving(options, parser) if options.command == "serving" else _offline(options, parser)


def _gateway(arguments: list[str]) -> int:
    # The engine does not know the gateway: this is only the way to its program, where it is installed.
    try:
        program = importlib.import_module("deepseek_gateway.bench.cli")
    except ModuleNotFoundError as error:
        if error.name != "deepseek_gateway":
            raise
        print("this needs the gateway, which is not installed: pip install deepseek-gateway", file=sys.stderr)
        return 1
    return program.main(arguments)


def _serving(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    chosen = serving_options(options, parser)
    try:  # each benchmark loads only what it needs: an HTTP client here, torch there
        from deepseek_engine.bench.serving.run import run_serving
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("deepseek_engine"):
            raise
        print(f"this needs {error.name}, which is not installed: pip install 'deepseek-engine[bench]'", file=sys.stderr)
        return 1
    return run_serving(chosen)


def _offline(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if wants_workloads(options):
        return _status_of(workload_command(options, parser))
    for name in ("prompt_tokens", "output_tokens", "runs", *(["threads"] if options.threads is not None else [])):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if min(options.batch_sizes) < 1:
        parser.error("--batch-sizes must be at least 1")
    from deepseek_engine.bench.offline import run_offline

    def measure() -> int:
        config = EngineConfig(
            model=options.model_path,
            dtype=options.dtype,
            quantization=options.quantization,
            max_num_seqs=max(options.batch_sizes),
            max_num_batched_tokens=max(2048, *options.batch_sizes),
            num_threads=options.threads,
        )
        run_offline(config, options.batch_sizes, options.prompt_tokens, options.output_tokens, options.runs)
        return 0

    return _status_of(measure)


def _status_of(command: Callable[[], int]) -> int:
    try:
        return command()
    except EngineError as error:
        print(f"deepseek-bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
