"""`deepseek-gateway check`: the effective settings, where each comes from, and everything that is wrong with them."""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

from deepseek_gateway.cli.common import Commands, add_listen_flags, add_state_flag, opened, source_of, table
from deepseek_gateway.config.effective import effective_settings
from deepseek_gateway.edge.tls import tls_files
from deepseek_gateway.errors import ConfigurationError, GatewayError, UpstreamError
from deepseek_gateway.limits.redis_link import RedisLink, RedisUnavailableError
from deepseek_gateway.limits.sole import APART, ONE_WAY_OUT
from deepseek_gateway.money.prices import load_prices
from deepseek_gateway.policy.snapshot import UpstreamPlan, plan_upstreams
from deepseek_gateway.settings import Settings
from deepseek_gateway.stack.workers import check_shared_limits
from deepseek_gateway.upstream.client import UpstreamClient
from deepseek_gateway.upstream.prober import ready_url

REDIS_TIMEOUT_S = 2.0


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("check", help="show the effective settings and what is wrong with them")
    add_state_flag(parser)
    add_listen_flags(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="processes on the port (GATEWAY_WORKERS, 1)")
    parser.add_argument("--upstream", action="append", metavar="URL", help="an engine (GATEWAY_UPSTREAMS)")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print settings, then faults; 1 if there are any."""
    loaded = source_of(parsed).read()
    print(f"file: {loaded.path or 'none'}\n")
    rows = [[each.name, each.value, each.origin, each.meaning] for each in effective_settings(Settings, loaded)]
    print(table(("setting", "value", "from", "meaning"), rows))
    if loaded.settings is not None:
        _print_sections(loaded.settings)
    faults = list(loaded.faults)
    if loaded.settings is not None:
        faults += _faults(loaded.settings)
    print()
    for fault in faults:
        print(f"fault: {fault}")
    if loaded.settings is not None:
        for warning in _warnings(loaded.settings):
            print(f"warning: {warning}")
    if not faults:
        print("no faults: `deepseek-gateway serve` can start")
    return 1 if faults else 0


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
        load_prices(settings.prices)
    except GatewayError as error:
        yield from str(error).splitlines()
    try:
        tls = tls_files(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        if tls is not None:
            tls.load()
    except ConfigurationError as error:
        yield str(error)
    if settings.workers > 1:
        try:
            check_shared_limits(settings)
        except ConfigurationError as error:
            yield str(error)
    if settings.redis_url is not None:
        try:
            memory = asyncio.run(_redis_memory(settings.redis_url.get_secret_value()))
            yield from _apart(settings, memory)
        except GatewayError as error:
            yield str(error)
        except RedisUnavailableError as error:
            yield f"GATEWAY_REDIS_URL: the server does not answer: {error}"
    if not settings.upstreams:
        yield "GATEWAY_UPSTREAMS is empty: name at least one engine, such as http://host:8080"
    plans, faults = plan_upstreams(settings)
    yield from faults
    yield from asyncio.run(_engine_faults(plans))


def _warnings(settings: Settings) -> Iterator[str]:
    """What works, and may not be what is meant."""
    with contextlib.suppress(ConfigurationError):  # it is a fault already
        tls = tls_files(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        if tls is not None and (warning := tls.warning(time.time())) is not None:
            yield warning
    yield from _unpriced(settings)
    shares_store = settings.store_url is not None
    if shares_store and settings.workers == 1 and settings.redis_url is None and not settings.allow_local_limits:
        yield (
            "GATEWAY_REDIS_URL is not set: one gateway may use this store, and a second is refused, as it would count "
            "limits apart; GATEWAY_ALLOW_LOCAL_LIMITS=true accepts that callers get each limit from each gateway"
        )


def _unpriced(settings: Settings) -> Iterator[str]:
    """Names for callers that cost nothing, though others do: prices are of the names that callers give."""
    with contextlib.suppress(ConfigurationError):  # it is a fault already
        prices = load_prices(settings.prices)
        for model in settings.models if prices.entries else ():
            if prices.find(model.name, time.time()) is None:
                yield f"the model {model.name} has no price in {settings.prices}: it costs nothing, whatever serves it"


async def _redis_memory(url: str) -> str | None:
    link = RedisLink(url, REDIS_TIMEOUT_S)
    try:
        return await link.memory()
    finally:
        await link.close()


def _apart(settings: Settings, memory: str | None) -> Iterator[str]:
    """Gateways that run on this store, and count limits in another Redis than this one would."""
    _, url = settings.store_address
    if url is None or settings.allow_local_limits:
        return
    from deepseek_gateway.storage.claim import marks_of, number_of  # its driver is an extra

    if marks_of(url) - (set() if memory is None else {number_of(memory)}):
        yield f"{APART}: {ONE_WAY_OUT}"


async def _engine_faults(plans: Sequence[UpstreamPlan]) -> list[str]:
    found = await asyncio.gather(*(_engine_fault(plan) for plan in plans))
    return [fault for fault in found if fault is not None]


async def _engine_fault(plan: UpstreamPlan) -> str | None:
    address, timeout_s = plan.section.address, plan.connect_timeout_s
    async with UpstreamClient(address, plan.key, timeout_s, plan.tls) as client:
        try:
            ready = await client.get(ready_url(plan.section.kind, address), timeout_s)
            models = await client.get(address.endpoint("v1", "models"), timeout_s)
        except UpstreamError as error:
            return str(error)
    if ready.status >= 500:
        return f"the engine at {address.url} is not ready: it answers {ready.status}"
    if models.status in {401, 403}:
        return f"the engine at {address.url} refuses the key ({models.status}): see `key` and `upstream_key`"
    return None
