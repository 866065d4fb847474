"""Every knob of the gateway: keys of gateway.toml, overridden by GATEWAY_* variables, overridden by flags.

A new knob is one field with its default, bounds and `description`. In variables a tuple is written with commas, and
tables as JSON; a SecretStr may be `env:NAME` or `file:/path`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from deepseek_gateway.auth.netlist import NetList, net_list, parse_network
from deepseek_gateway.config.load import LoadedConfig, load_config
from deepseek_gateway.config.sections import ModelSection, Section, UpstreamSection
from deepseek_gateway.config.sources import find_config
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.ledger.orphans import journal_path
from deepseek_gateway.upstream.address import UpstreamAddress

LIVE = frozenset(
    {
        "upstreams", "models", "upstream_key", "upstream_continuous_usage", "upstream_connect_timeout_s",
        "upstream_idle_timeout_s", "upstream_probe_s", "upstream_max_backoff_s", "upstream_max_failures",
        "upstream_load_s", "max_attempts", "retry_share", "hedge_share", "queue_size", "queue_timeout_s",
        "shed_loop_lag_s", "shed_engine_queue", "reload_poll_s", "max_body_bytes", "max_response_bytes",
        "body_timeout_s", "max_requests", "slice_tokens", "overrun_tokens", "default_max_tokens", "abort_drain_s",
        "drain_timeout_s", "journal_wait", "log_level", "prices",
    }
)  # fmt: skip
"""Settings that a reload changes; the others keep their value until the next start."""


def default_state_dir() -> Path:
    """`$XDG_STATE_HOME/deepseek-gateway`, or its default in the home folder."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "deepseek-gateway"


class Settings(Section):
    """Settings of one gateway process; the variable of `port` is GATEWAY_PORT, its flag is `--port`."""

    state_dir: Path = Field(default_factory=default_state_dir, description="folder of store, journal and pepper")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 is any free one")
    workers: int = Field(1, ge=1, le=64, description="processes on the port, each with its own journal")
    worker: int = Field(0, ge=0, le=63, description="number of this process among them: set by the parent")
    allow_local_limits: bool = Field(
        False, description="let several workers, or gateways of one store, count limits apart"
    )
    tls_certificate: Path | None = Field(None, description="PEM file with the certificate and its chain: serve HTTPS")
    tls_key: Path | None = Field(None, description="PEM file with the certificate's key")
    tls_client_ca: Path | None = Field(None, description="PEM file: callers need a certificate of this authority")
    upstreams: tuple[UpstreamSection, ...] = Field(
        (), description="engines: tables, or URLs: http://host:port, https://host/v1, unix:///path.sock"
    )
    models: tuple[ModelSection, ...] = Field((), description="names for callers, each with its pool of targets")
    upstream_key: SecretStr | None = Field(None, description="bearer key that the engines ask for")
    upstream_continuous_usage: bool = Field(
        True, description="ask engines for usage in every stream event; false for servers that refuse the option"
    )
    upstream_connect_timeout_s: float = Field(5.0, gt=0, description="seconds to reach an engine")
    upstream_idle_timeout_s: float = Field(600.0, gt=0, description="seconds that an engine may stay silent")
    upstream_probe_s: float = Field(1.0, gt=0, description="seconds between looks at an engine that is down")
    upstream_max_backoff_s: float = Field(30.0, gt=0, description="longest time that a failed engine is left alone")
    upstream_max_failures: int = Field(3, ge=1, description="faults in a row after which an engine is left alone")
    upstream_load_s: float = Field(1.0, gt=0, description="seconds between looks at the load of engines that are up")
    max_attempts: int = Field(3, ge=1, le=16, description="engines that are tried for a request before its first byte")
    retry_share: float = Field(0.2, ge=0, le=1, description="retries allowed for each request, beside ten at first")
    hedge_share: float = Field(
        0.0, ge=0, le=0.02, description="second tries allowed for each stream that is slow to begin; 0 is none"
    )
    queue_size: int = Field(1024, ge=0, description="requests that wait for an engine with room, at most")
    queue_timeout_s: float = Field(30.0, gt=0, description="seconds that a request may wait for an engine with room")
    shed_loop_lag_s: float = Field(
        1.0, ge=0, description="lateness of the event loop from which requests are turned away; 0 is never"
    )
    shed_engine_queue: int = Field(
        256, ge=0, description="requests waiting in every engine from which more are turned away; 0 is never"
    )
    reload_poll_s: float = Field(2.0, gt=0, description="seconds between looks at the configuration file")
    store_url: SecretStr | None = Field(
        None, description="postgresql://user:password@host/name, instead of SQLite in `state_dir`"
    )
    key_pepper: SecretStr | None = Field(None, description="secret of the key hashes, instead of the file `pepper`")
    payload_key: SecretStr | None = Field(
        None, description="master key of kept texts, 32 bytes in base64, instead of the file `payload-key`"
    )
    payload_max_bytes: int = Field(
        256 * 2**10,
        ge=1024,
        le=8 * 2**20,
        description="longest request or answer that is kept whole, where they are kept",
    )
    payload_queue_bytes: int = Field(
        32 * 2**20, ge=2**20, description="texts that wait for the store; more are lost, requests never"
    )
    trace_days: int = Field(90, ge=0, description="days that the lives of requests are kept; 0 keeps them for good")
    trusted_proxies: tuple[str, ...] = Field(
        (), description="networks of your own proxies, separated by commas: their X-Forwarded-For is believed"
    )
    key_cache_ttl_s: float = Field(2.0, ge=0, le=5, description="seconds that a revoked key may work on")
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="largest request body")
    max_head_bytes: int = Field(32 * 1024, ge=4096, description="largest request line and headers together")
    head_timeout_s: float = Field(10.0, gt=0, description="seconds that a caller has to send a request's head")
    max_connections: int = Field(20_000, ge=1, description="connections at once; more are refused")
    max_response_bytes: int = Field(64 * 2**20, ge=1024, description="largest answer that is not streamed, and event")
    body_timeout_s: float = Field(60.0, gt=0, description="seconds that a caller has to send its body")
    journal_wait: Literal["money", "always"] = Field(
        "money",
        description="whose answers wait for their admission to be on the disk: those under limits in money, or all",
    )
    send_timeout_s: float = Field(60.0, gt=0, description="seconds that a caller may leave its stream unread")
    max_requests: int = Field(2048, ge=1, description="requests at once, of all keys together")
    keep_alive_s: float = Field(15.0, gt=0, le=15, description="seconds of silence before a stream carries a comment")
    replay_ttl_s: float = Field(
        3600.0, gt=0, le=86400, description="seconds that an answer with an Idempotency-Key is kept for retries"
    )
    replay_bytes: int = Field(64 * 2**20, ge=0, description="bytes of all kept answers together; the oldest go first")
    replay_entry_bytes: int = Field(
        2**20, ge=256 * 1024, description="bytes of one kept answer, and of a resumable stream's newest events"
    )
    resume_grace_s: float = Field(
        30.0, ge=0, le=600, description="seconds that a resumable answer goes on after its caller has left"
    )
    slice_tokens: int = Field(256, ge=16, description="answer tokens that a stream holds of its limits at a time")
    redis_url: SecretStr | None = Field(
        None, description="redis://host:port/0, rediss:// or unix:///path.sock: limits that several gateways share"
    )
    redis_timeout_s: float = Field(0.05, gt=0, le=5, description="seconds that Redis has for one step")
    redis_beat_s: float = Field(0.5, gt=0, le=10, description="seconds between signs of life; a loss is noticed in one")
    redis_lease_s: float = Field(15.0, ge=1, description="seconds that what a request holds outlives its gateway")
    overrun_tokens: int = Field(
        16, ge=1, description="tokens that an engine may make between a limit's end of a stream and its own"
    )
    default_max_tokens: int = Field(
        4096, ge=1, description="tokens held for an answer that is not streamed and gives no max_tokens"
    )
    prices: Path | None = Field(None, description="file of model prices: see docs/gateway/limits.md")
    abort_drain_s: float = Field(5.0, gt=0, description="seconds to wait for the exact usage of an aborted request")
    drain_timeout_s: float = Field(30.0, ge=0, description="seconds that running requests have after SIGTERM")
    web: bool = Field(True, description="serve the administration pages at /ui")
    public_url: str = Field(
        "", description="URL of the gateway as browsers see it, behind a proxy; https makes the pages' cookies Secure"
    )
    web_session_s: float = Field(12 * 3600.0, gt=0, description="seconds that a sign-in to the pages lasts")
    web_idle_s: float = Field(3600.0, gt=0, description="seconds after which a sign-in that is not used ends")
    word_review_days: int = Field(90, ge=1, le=3650, description="days that hits stay in the review queue")
    classifier_url: str = Field(
        "", description="service that judges texts, of the form of OpenAI's https://…/v1/moderations; none if empty"
    )
    classifier_key: SecretStr | None = Field(None, description="its bearer key")
    classifier_model: str = Field("", description="the model that it is asked for; its own choice if empty")
    classifier_mode: Literal["review", "block"] = Field(
        "review", description="what becomes of requests that it flags; block lets requests wait for it"
    )
    classifier_timeout_s: float = Field(2.0, gt=0, le=60, description="seconds that a request waits for it")
    classifier_on_failure: Literal["closed", "open"] = Field(
        "closed", description="whether requests that it did not judge pass (open) or get 503, where it may block"
    )
    oidc_issuer: str = Field(
        "", description="OpenID Connect issuer for sign-ins to the pages, such as https://id.example/realm"
    )
    oidc_client_id: str = Field("", description="the gateway's client id at the issuer")
    oidc_client_secret: SecretStr | None = Field(None, description="its secret; none for a public client")
    oidc_scopes: str = Field("openid profile", description="scopes to ask for, separated by spaces")
    oidc_role_claim: str = Field("groups", description="claim whose values give roles; dots lead into objects")
    oidc_admins: tuple[str, ...] = Field((), description="values of the claim that make an administrator")
    oidc_viewers: tuple[str, ...] = Field((), description="values of the claim that make a viewer")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe lines to log")
    otel_endpoint: str | None = Field(None, description="OTLP/HTTP address that traces go to, such as http://host:4318")
    access_log: Literal["text", "json", "off"] = Field(
        "text", description="form of the line that each request gets on stderr; json makes all lines JSON"
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _parse_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(parse_network(text)) for text in value)

    @field_validator("classifier_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if value and UpstreamAddress.parse(value).socket_path is not None:
            raise ValueError(f"{value!r} is no URL such as https://moderation.example/v1/moderations")
        return value

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def store_address(self) -> tuple[Path, str | None]:
        """The SQLite file, and the URL that stands in its place if there is one."""
        return self.store_path, None if self.store_url is None else self.store_url.get_secret_value()

    @property
    def store_path(self) -> Path:
        """The SQLite file."""
        return self.state_dir / "gateway.sqlite3"

    @property
    def pepper_path(self) -> Path:
        """The pepper's file."""
        return self.state_dir / "pepper"

    @property
    def payload_key_path(self) -> Path:
        """The file of the master key of kept texts."""
        return self.state_dir / "payload-key"

    @property
    def journal_path(self) -> Path:
        """The journal's folder."""
        return journal_path(self.state_dir, self.worker)

    @property
    def proxies(self) -> NetList:
        """Our own proxies."""
        return net_list(self.trusted_proxies)


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where one process has its settings from, so that they can be read again.

    Args:
        file: given by a flag; else GATEWAY_CONFIG, else `gateway.toml` in the state directory if it is there.
        flags: by the names of settings; one that is None was not given.
        own_upstreams: stand before the configured ones.
    """

    file: Path | None = None
    flags: Mapping[str, object] = field(default_factory=dict[str, object])
    own_upstreams: tuple[UpstreamSection, ...] = ()

    @property
    def path(self) -> Path | None:
        """The file that is read."""
        return find_config(self.file, self._state_dir)

    def read(self) -> LoadedConfig[Settings]:
        """Settings with their sources, and everything that is wrong."""
        loaded = load_config(Settings, self._state_dir, self.flags, self.file)
        if loaded.settings is None or not self.own_upstreams:
            return loaded
        upstreams = (*self.own_upstreams, *loaded.settings.upstreams)
        return replace(loaded, settings=loaded.settings.model_copy(update={"upstreams": upstreams}))

    def load(self) -> Settings:
        """Settings.

        Raises:
            ConfigurationError: something is wrong; one line for each fault, by the name and place where it was given.
        """
        loaded = self.read()
        if loaded.settings is None or loaded.faults:
            raise ConfigurationError("\n".join(loaded.faults))
        return loaded.settings

    @property
    def _state_dir(self) -> Path:
        given = self.flags.get("state_dir") or os.environ.get("GATEWAY_STATE_DIR") or default_state_dir()
        return Path(str(given)).expanduser().absolute()


def load_settings(config: Path | None = None, /, **flags: object) -> Settings:
    """Settings from flags first, then variables, then the file: see `ConfigSource`.

    Raises:
        ConfigurationError: something is wrong.
    """
    return ConfigSource(config, flags).load()
