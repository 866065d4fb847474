"""`deepseek-gateway check`: the effective settings, and what is wrong with them."""

import argparse
import asyncio
import os
from collections.abc import Iterator

from pydantic import SecretStr

from deepseek_gateway.cli.common import Commands, add_state_flag, opened, settings_of, table
from deepseek_gateway.errors import GatewayError, UpstreamError
from deepseek_gateway.settings import PREFIX, Settings, unknown_variables
from deepseek_gateway.upstream.address import UpstreamAddress
from deepseek_gateway.upstream.client import UpstreamClient


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("check", help="show the effective settings and what is wrong with them")
    add_state_flag(parser)
    parser.add_argument("--upstream", action="append", metavar="URL", help="an engine (GATEWAY_UPSTREAMS)")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print settings, then faults; 1 if there are any."""
    settings = settings_of(parsed, upstreams=",".join(parsed.upstream) if parsed.upstream else None)
    print(table(("setting", "value", "from", "meaning"), [_row(settings, name) for name in Settings.model_fields]))
    faults = list(_faults(settings))
    print()
    for fault in faults:
        print(f"fault: {fault}")
    if not faults:
        print("no faults: `deepseek-gateway serve` can start")
    return 1 if faults else 0


def _row(settings: Settings, name: str) -> list[object]:
    value = getattr(settings, name)
    shown = "(set)" if isinstance(value, SecretStr) else str(value)
    if name == "upstreams":
        shown = ",".join(settings.upstreams)
    field = Settings.model_fields[name]
    if f"{PREFIX}{name.upper()}" in {variable.upper() for variable in os.environ}:
        source = f"{PREFIX}{name.upper()}"
    else:
        source = "flag" if value != field.get_default(call_default_factory=True) else "default"
    return [name, shown or "-", source, field.description]


def _faults(settings: Settings) -> Iterator[str]:
    for variable in unknown_variables():
        yield f"{variable} names no setting: it has no effect"
    try:
        with opened(settings):
            pass
    except GatewayError as error:
        yield str(error)
    if not settings.upstreams:
        yield "GATEWAY_UPSTREAMS is empty: name at least one engine, such as http://host:8080"
    for address in settings.addresses:
        fault = asyncio.run(_engine_fault(settings, address))
        if fault is not None:
            yield fault


async def _engine_fault(settings: Settings, address: UpstreamAddress) -> str | None:
    async with UpstreamClient(address, None, settings.upstream_connect_timeout_s) as client:
        try:
            answer = await client.get(address.outside("ready"), settings.upstream_connect_timeout_s)
        except UpstreamError as error:
            return str(error)
    return f"the engine at {address.url} is not ready: it answers {answer.status}" if answer.status >= 500 else None
