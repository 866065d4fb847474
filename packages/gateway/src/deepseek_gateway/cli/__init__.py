"""`deepseek-gateway`: the commands."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

import deepseek_gateway
from deepseek_gateway.errors import GatewayError

COMMANDS = {
    "up": "up",
    "serve": "serve",
    "migrate": "migrate",
    "check": "check",
    "org": "orgs",
    "team": "teams",
    "user": "users",
    "key": "keys",
    "limit": "limits",
    "balance": "balances",
    "words": "words",
    "usage": "usage",
    "admin": "admin",
    "audit": "audit",
    "trace": "trace",
    "payload": "payload",
    "erase": "erase",
    "bench": "bench",
    "top": "top",
}
"""Each command and its module here. Only the given command's is loaded: a start waits for no other."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status: 0 done, 1 a fault that the message explains, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="deepseek-gateway", description="Keys, limits, an exact usage ledger and a streaming relay for engines."
    )
    parser.add_argument("--version", action="version", version=deepseek_gateway.__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    given, engine_arguments = _split(list(sys.argv[1:] if arguments is None else arguments))
    named = [COMMANDS[given[0]]] if given and given[0] in COMMANDS else COMMANDS.values()
    for module in named:
        importlib.import_module(f"deepseek_gateway.cli.{module}").add_parser(commands)
    parsed = parser.parse_args(given)
    parsed.given, parsed.engine_arguments = given, engine_arguments
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr, level="INFO")
    try:
        status = parsed.run(parsed)
        sys.stdout.flush()
    except GatewayError as error:
        print(f"deepseek-gateway: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has what it wanted; nothing more can be written, at the exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after `--`."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]
