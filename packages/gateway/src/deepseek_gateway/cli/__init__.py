"""`deepseek-gateway`: the commands."""

import argparse
import logging
import sys
from collections.abc import Sequence

import deepseek_gateway
from deepseek_gateway.cli import check, keys, migrate, serve, up, usage
from deepseek_gateway.errors import GatewayError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status: 0 done, 1 a fault that the message explains, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="deepseek-gateway", description="Keys, limits, an exact usage ledger and a streaming relay for engines."
    )
    parser.add_argument("--version", action="version", version=deepseek_gateway.__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (up, serve, migrate, check, keys, usage):
        module.add_parser(commands)
    given, engine_arguments = _split(list(sys.argv[1:] if arguments is None else arguments))
    parsed = parser.parse_args(given)
    parsed.engine_arguments = engine_arguments
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr, level="INFO")
    try:
        return parsed.run(parsed)
    except GatewayError as error:
        print(f"deepseek-gateway: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after `--`."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]
