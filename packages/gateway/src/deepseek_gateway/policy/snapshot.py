"""The compiled configuration: checked as a whole, immutable, named by a hash. A request keeps the one it began with."""

import dataclasses
import hashlib
import hmac
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr

from deepseek_gateway.config.load import nearest
from deepseek_gateway.config.sections import ModelSection, TlsSection, UpstreamSection
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.money.prices import Prices, load_prices
from deepseek_gateway.settings import Settings

VERSION_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """All that an upstream's connections depend on: two that are equal can share them."""

    section: UpstreamSection
    key: SecretStr | None
    continuous_usage: bool
    connect_timeout_s: float
    max_backoff_s: float
    max_failures: int
    tls_stamp: tuple[tuple[str, int, int], ...]
    tls: ssl.SSLContext | None = dataclasses.field(compare=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is in force. `models` are the aliases by name."""

    version: str
    settings: Settings
    upstreams: tuple[UpstreamPlan, ...]
    models: Mapping[str, ModelSection]
    prices: Prices


def compile_snapshot(settings: Settings, pepper: bytes = b"") -> Snapshot:
    """Check what only shows as a whole, and prepare what connections need. Reads certificate and price files.

    Args:
        settings: the values.
        pepper: with it secrets enter the version, without becoming guessable by it.

    Raises:
        ConfigurationError: one line for each fault.
    """
    plans, faults = plan_upstreams(settings)
    prices = Prices()
    try:
        prices = load_prices(settings.prices)
    except ConfigurationError as error:
        faults += str(error).splitlines()
    if faults:
        raise ConfigurationError("\n".join(faults))
    models = MappingProxyType({model.name: model for model in settings.models})
    return Snapshot(_version(settings, prices, pepper), settings, tuple(plans), models, prices)


def plan_upstreams(settings: Settings) -> tuple[list[UpstreamPlan], list[str]]:
    """The upstreams that can be planned, and everything that is wrong with upstreams and models."""
    faults = [*_name_faults(settings), *_target_faults(settings)]
    plans: list[UpstreamPlan] = []
    for section in settings.upstreams:
        try:
            plans.append(_plan(settings, section))
        except (OSError, ssl.SSLError) as error:
            is_alone = section.tls is not None and section.tls.cert_file is not None and section.tls.key_file is None
            hint = " (does tls.cert_file hold its key? else name tls.key_file)" if is_alone else ""
            faults.append(f"upstream {section.name}: its certificates cannot be used: {error}{hint}")
    return plans, faults


def watched_files(settings: Settings) -> list[Path]:
    """Certificate and price files: a change of theirs is a change of the configuration."""
    prices = [] if settings.prices is None else [settings.prices]
    return prices + [path for section in settings.upstreams for path in _tls_files(section.tls)]


def _plan(settings: Settings, section: UpstreamSection) -> UpstreamPlan:
    continuous = section.continuous_usage
    if continuous is None:
        continuous = section.kind == "engine" and settings.upstream_continuous_usage
    return UpstreamPlan(
        section=section,
        key=section.key or (settings.upstream_key if section.kind != "deepseek-cloud" else None),
        continuous_usage=continuous,
        connect_timeout_s=settings.upstream_connect_timeout_s,
        max_backoff_s=settings.upstream_max_backoff_s,
        max_failures=settings.upstream_max_failures,
        tls_stamp=tuple((str(path), *_stamp(path)) for path in _tls_files(section.tls)),
        tls=_tls_context(section),
    )


def _tls_context(section: UpstreamSection) -> ssl.SSLContext | None:
    if not section.url.startswith("https:"):
        return None
    tls = section.tls or TlsSection.model_validate({})
    context = ssl.create_default_context(cafile=None if tls.ca_file is None else str(tls.ca_file))
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def _tls_files(tls: TlsSection | None) -> list[Path]:
    given = () if tls is None else (tls.ca_file, tls.cert_file, tls.key_file)
    return [path for path in given if path is not None]


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


def _name_faults(settings: Settings) -> Iterator[str]:
    for kind, names in (
        ("upstreams", [upstream.name for upstream in settings.upstreams]),
        ("models", [model.name for model in settings.models]),
    ):
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{kind}: the name {name!r} stands twice"
    for upstream in settings.upstreams:
        if upstream.kind == "deepseek-cloud" and upstream.key is None:
            yield f"upstream {upstream.name}: DeepSeek's cloud needs a `key`"


def _target_faults(settings: Settings) -> Iterator[str]:
    names = {upstream.name: None for upstream in settings.upstreams}
    tags = {tag: None for upstream in settings.upstreams for tag in upstream.tags}
    for model in settings.models:
        for target in model.targets:
            if target.upstream is not None and target.upstream not in names:
                yield f"model {model.name}: there is no upstream {target.upstream!r}{nearest(target.upstream, names)}"
            if target.tag is not None and target.tag not in tags:
                yield f"model {model.name}: no upstream has the tag {target.tag!r}{nearest(target.tag, tags)}"


def _version(settings: Settings, prices: Prices, pepper: bytes) -> str:
    """A hash of all values, the same on every node and worker with the same configuration and pepper."""

    def encode(value: Any) -> object:
        if isinstance(value, SecretStr):
            return hmac.new(pepper, value.get_secret_value().encode(), "sha256").hexdigest() if pepper else "set"
        return str(value)

    values = settings.model_dump(exclude={"worker"})
    values["prices"] = [prices.currency, *(entry.model_dump() for entry in prices.entries)]
    text = json.dumps(values, sort_keys=True, default=encode)
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_CHARACTERS]
