"""`deepseek-gateway check`: the effective settings, where each comes from, and everything that is wrong with them."""

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from typing import cast

from pydantic import SecretStr

from deepseek_gateway.cli.common import Commands, add_state_flag, opened, source_of, table
from deepseek_gateway.config.load import LoadedConfig
from deepseek_gateway.config.sections import Section, is_secret
from deepseek_gateway.errors import GatewayError, UpstreamError
from deepseek_gateway.settings import Settings
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
    loaded = source_of(parsed).read()
    print(f"file: {loaded.path or 'none'}\n")
    print(table(("setting", "value", "from", "meaning"), [_row(loaded, name) for name in Settings.model_fields]))
    if loaded.settings is not None:
        _print_sections(loaded.settings)
    faults = list(loaded.faults)
    if loaded.settings is not None:
        faults += _faults(loaded.settings)
    print()
    for fault in faults:
        print(f"fault: {fault}")
    if not faults:
        print("no faults: `deepseek-gateway serve` can start")
    return 1 if faults else 0


def _row(loaded: LoadedConfig[Settings], name: str) -> list[object]:
    field = Settings.model_fields[name]
    if loaded.settings is not None:
        value: object = getattr(loaded.settings, name)
    else:
        value = loaded.sources.values.get(name, field.get_default(call_default_factory=True, validated_data={}))
    shown = "(set)" if is_secret(field) and value is not None else _shown(value)
    return [name, shown, loaded.sources.origins.get(name, "default"), field.description]


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(_shown(item) for item in cast("Sequence[object]", value)) or "-"
    if isinstance(value, Section):
        return str(getattr(value, "name", "table"))
    if isinstance(value, dict):
        return "table"
    if isinstance(value, SecretStr) or (isinstance(value, str) and "@" in value):
        return "(set)"  # a URL with an @ may hold a password
    return str("-" if value is None else value)


def _print_sections(settings: Settings) -> None:
    """The tables, a row each."""
    if settings.upstreams:
        titles = ("upstream", "url", "kind", "weight", "capacity", "key", "models", "tags")
        rows = [
            [
                *(at.name, at.url, at.kind, f"{at.weight:g}", at.capacity or "-", "-" if at.key is None else "(set)"),
                *(",".join((*at.models, *at.renames)) or "its own", ",".join(at.tags) or "-"),
            ]
            for at in settings.upstreams
        ]
        print(f"\n{table(titles, rows)}")
    if settings.models:
        rows = [
            [model.name, at.upstream or f"tag {at.tag}", at.model or model.name, f"{at.weight:g}", at.tier]
            for model in settings.models
            for at in model.targets
        ]
        print(f"\n{table(('model', 'upstream', 'its name there', 'weight', 'tier'), rows)}")


def _faults(settings: Settings) -> Iterator[str]:
    try:
        with opened(settings):
            pass
    except GatewayError as error:
        yield str(error)
    if not settings.upstreams:
        yield "GATEWAY_UPSTREAMS is empty: name at least one engine, such as http://host:8080"
    for upstream in settings.upstreams:
        fault = asyncio.run(_engine_fault(settings, upstream.address))
        if fault is not None:
            yield fault


async def _engine_fault(settings: Settings, address: UpstreamAddress) -> str | None:
    async with UpstreamClient(address, None, settings.upstream_connect_timeout_s) as client:
        try:
            answer = await client.get(address.outside("ready"), settings.upstream_connect_timeout_s)
        except UpstreamError as error:
            return str(error)
    return f"the engine at {address.url} is not ready: it answers {answer.status}" if answer.status >= 500 else None
