"""Every knob of the gateway: GATEWAY_* variables, overridden by the command line."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from deepseek_gateway.operator_errors import OperatorError

MIN_PEPPER_BYTES = 16


class SettingsError(OperatorError):
    """A setting that cannot work, by the name of its variable."""


def default_state_dir() -> Path:
    """`deepseek-gateway` in the user's state folder, as XDG has it."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "deepseek-gateway"


class Settings(BaseSettings):
    """Settings of the gateway; the variable of `port` is GATEWAY_PORT. Build it with `load_settings`."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", extra="ignore", frozen=True, protected_namespaces=())

    state_dir: Path = Field(default_factory=default_state_dir, description="folder of store, journal and key pepper")
    key_pepper: SecretStr | None = Field(
        None, description="secret under all key hashes; a file in the state folder if not given"
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 is any free one")
    max_body_bytes: int = Field(4 * 2**20, ge=1, description="largest request body, bytes")
    max_connections: int = Field(4096, ge=1, description="connections and running requests at one time at most")
    keep_alive_s: float = Field(15.0, gt=0, description="seconds of silence before a stream carries a comment")
    drain_timeout_s: float = Field(30.0, ge=0, description="seconds that running requests have after SIGTERM")
    abort_timeout_s: float = Field(
        5.0, gt=0, description="seconds that an aborted request's exact usage is waited for before it is estimated"
    )

    upstreams: Annotated[tuple[str, ...], NoDecode] = Field(
        ("http://127.0.0.1:8081",), description="engines, comma-separated: http://host:port or unix:/path.sock"
    )
    upstream_api_key: SecretStr | None = Field(None, description="bearer key that the engines ask for")
    connect_timeout_s: float = Field(2.0, gt=0, description="seconds to reach an engine")
    first_byte_timeout_s: float = Field(600.0, gt=0, description="seconds from sending a request to its first byte")
    idle_timeout_s: float = Field(120.0, gt=0, description="seconds between two pieces of an engine's answer")
    health_interval_s: float = Field(2.0, gt=0, description="seconds between two looks at an engine's /ready")
    mark_down_s: float = Field(1.0, gt=0, description="seconds that an engine gets nothing after its first failure")
    mark_down_max_s: float = Field(30.0, gt=0, description="longest such wait, reached by doubling")

    default_max_tokens: int = Field(512, ge=1, description="answer tokens assumed of a request that names no limit")
    slice_tokens: int = Field(256, ge=1, description="answer tokens reserved at a time while a stream runs")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe lines to log")

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("upstreams", mode="before")
    @classmethod
    def _split_upstreams(cls, value: object) -> object:
        return tuple(url.strip() for url in value.split(",") if url.strip()) if isinstance(value, str) else value

    @field_validator("upstreams")
    @classmethod
    def _check_upstreams(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no engine: give at least one http://host:port or unix:/path.sock")
        return tuple(dict.fromkeys(_checked_upstream(url) for url in value))

    @field_validator("key_pepper")
    @classmethod
    def _check_pepper(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < MIN_PEPPER_BYTES:
            raise ValueError(f"is shorter than {MIN_PEPPER_BYTES} bytes: use the output of `openssl rand -hex 32`")
        return value

    @property
    def store_path(self) -> Path:
        """The SQLite file."""
        return self.state_dir / "gateway.sqlite3"

    @property
    def pepper_path(self) -> Path:
        """The pepper's file, used when `key_pepper` is not given."""
        return self.state_dir / "key-pepper"

    def describe(self) -> dict[str, str]:
        """Every setting's value as text, by variable name, secrets masked."""
        return {_variable(name): _shown(getattr(self, name)) for name in type(self).model_fields}


def load_settings(**overrides: Any) -> Settings:
    """Settings from GATEWAY_* variables; an override that is not None wins.

    Raises:
        SettingsError: a value cannot work; the message names the variable.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        value = "" if "pepper" in name or "key" in name else f"={_shown(first['input'])}"
        reason = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{_variable(name)}{value}: {reason}") from error


def _variable(name: str) -> str:
    return f"GATEWAY_{name.upper()}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return "" if value is None else str(value)


def _checked_upstream(url: str) -> str:
    if url.startswith("unix:"):
        if not url.removeprefix("unix:").startswith("/"):
            raise ValueError(f"{url!r} must give an absolute path: unix:/path.sock")
        return url
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} must be http://host:port, https://host or unix:/path.sock")
    if parts.query or parts.fragment or parts.username:
        raise ValueError(f"{url!r} must hold no query, fragment or credentials")
    _ = parts.port  # raises ValueError for one out of range
    return url.rstrip("/").removesuffix("/v1")
