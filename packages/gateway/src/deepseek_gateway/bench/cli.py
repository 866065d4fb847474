"""`deepseek-gateway bench`, which `deepseek-bench gateway` calls too."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from deepseek_gateway.bench.flags import add_flags
from deepseek_gateway.bench.measures import Plan
from deepseek_gateway.bench.report import as_json, tables, versions
from deepseek_gateway.bench.run import Choice, run
from deepseek_gateway.bench.targets import litellm_environment, litellm_version
from deepseek_gateway.errors import GatewayError


def plan_of(options: argparse.Namespace) -> Plan:
    """What the flags ask for."""
    plan = Plan.quick() if options.quick else Plan()
    given = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "held_streams": options.held_streams,
        "key_rounds": options.key_rounds,
        "keys": None if options.keys is None else tuple(options.keys),
        "rates": None if options.rates is None else tuple(options.rates),
    }
    return replace(plan, **{name: value for name, value in given.items() if value is not None})


def run_bench(options: argparse.Namespace) -> int:
    """Measure, print the table, then one line of JSON; gives the exit status."""
    if not sys.platform.startswith("linux"):
        raise GatewayError("the benchmark reads /proc: it runs on Linux only")
    plan, found = plan_of(options), versions()
    results, targets = run(plan, Choice(not options.skip_litellm, options.litellm))
    if not options.skip_litellm:
        found["litellm"] = litellm_version(litellm_environment(options.litellm))
    print(tables(plan, results, targets))
    for what, why in results.faults.items():
        print(f"not measured: {what}: {why}")
    print(json.dumps(as_json(plan, results, found)))
    return 0


def main(arguments: Sequence[str] | None = None, prog: str = "deepseek-bench gateway") -> int:
    """Run as a command of its own."""
    parser = argparse.ArgumentParser(
        prog=prog, description="The engine directly, this gateway, and LiteLLM, side by side on this machine."
    )
    add_flags(parser)
    try:
        return run_bench(parser.parse_args(arguments))
    except GatewayError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
