"""The tables of the configuration file: what an upstream is, and what a model's name stands for."""

from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from deepseek_gateway.config.secrets import resolve_secret
from deepseek_gateway.upstream.address import UpstreamAddress

UpstreamKind = Literal["engine", "openai", "deepseek-cloud"]


class Section(BaseModel):
    """A table with fixed keys. A field of the type SecretStr takes `env:NAME` and `file:/path` too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _resolve(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        return resolve_secret(value) if isinstance(value, str) and is_secret(field) else value


class TlsSection(Section):
    """How an upstream is known to be the right one, and how it knows us."""

    ca_file: Path | None = Field(None, description="PEM file of the authorities to trust instead of the system's")
    cert_file: Path | None = Field(None, description="PEM file of our certificate, for upstreams that ask for one")
    key_file: Path | None = Field(None, description="PEM file of its key, if it is not in `cert_file`")

    @field_validator("ca_file", "cert_file", "key_file")
    @classmethod
    def _exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("there is no such file")
        return value


class UpstreamSection(Section):
    """An engine, or another server that speaks its HTTP. A URL alone is one with all else by default."""

    name: str = Field("", max_length=200, description="what logs, metrics, ledger and models call it; else its URL")
    url: str = Field(description="http://host:port, https://host/v1 or unix:///path.sock")
    kind: UpstreamKind = Field(
        "engine", description="engine: deepseek-server; openai: vLLM, SGLang and the like; deepseek-cloud"
    )
    key: SecretStr | None = Field(None, description="bearer key that it asks for, instead of `upstream_key`")
    weight: float = Field(1.0, gt=0, le=1000, description="its share of the requests beside other upstreams")
    capacity: int | None = Field(None, ge=1, description="most requests at once")
    model_capacity: dict[str, int] = Field(
        default_factory=dict, description="most requests at once by its own model names, as accounts in the cloud have"
    )
    models: tuple[str, ...] = Field((), description="its own model names; else what its /v1/models lists")
    renames: dict[str, str] = Field(default_factory=dict, description="its own model names by the names for callers")
    continuous_usage: bool | None = Field(
        None,
        description="ask for usage in every event; else as `upstream_continuous_usage` for engines, no for others",
    )
    tags: tuple[str, ...] = Field((), description="words by which `models` choose several upstreams")
    tls: TlsSection | None = Field(None, description="certificates, for https")

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, value: object) -> object:
        if isinstance(value, str):
            return {"url": value, "name": value}
        if isinstance(value, dict) and "name" not in value and "url" in value:
            given = cast("dict[str, object]", value)
            return {**given, "name": given["url"]}
        return cast("object", value)

    @field_validator("url")
    @classmethod
    def _parse(cls, value: str) -> str:
        UpstreamAddress.parse(value)
        return value

    @field_validator("model_capacity")
    @classmethod
    def _positive(cls, value: dict[str, int]) -> dict[str, int]:
        if any(number < 1 for number in value.values()):
            raise ValueError("a capacity is at least 1")
        return value

    @property
    def address(self) -> UpstreamAddress:
        """Where it listens."""
        return UpstreamAddress.parse(self.url)


class TargetSection(Section):
    """One way to serve a model: an upstream, or all with a tag, and what the model is called there."""

    upstream: str | None = Field(None, description="name of an upstream")
    tag: str | None = Field(None, description="a tag, instead of `upstream`")
    model: str | None = Field(None, description="the model's name there; else the same")
    weight: float = Field(1.0, gt=0, le=1000, description="its share of the requests beside others of the same tier")
    tier: int = Field(0, ge=0, le=9, description="0 is tried first; a higher tier takes what the lower ones cannot")

    @model_validator(mode="after")
    def _one_of(self) -> "TargetSection":
        if (self.upstream is None) == (self.tag is None):
            raise ValueError("a target names either an `upstream` or a `tag`")
        return self


class ModelSection(Section):
    """A name that callers use, and the pool of targets behind it."""

    name: str = Field(min_length=1, max_length=200, description="the name in requests and answers")
    targets: tuple[TargetSection, ...] = Field(min_length=1, description="who serves it")


def is_secret(field: FieldInfo) -> bool:
    """Whether a field holds a secret."""
    return SecretStr in {field.annotation, *get_args(field.annotation)}
