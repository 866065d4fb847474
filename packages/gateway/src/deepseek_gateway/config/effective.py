"""The effective settings for people: each with its value, where it comes from and what it means; no secrets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from pydantic import SecretStr

from deepseek_gateway.config.load import LoadedConfig
from deepseek_gateway.config.sections import Section, is_secret

Model = TypeVar("Model", bound=Section)

SET = "(set)"
"""Stands for a value that is not shown."""


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """One setting. `origin` is a flag, a variable, a place in the file, or `default`."""

    name: str
    value: str
    origin: str
    meaning: str

    @property
    def is_given(self) -> bool:
        """Whether somebody set it."""
        return self.origin != "default"


def effective_settings(
    schema: type[Model], loaded: LoadedConfig[Model], in_force: Model | None = None
) -> list[EffectiveSetting]:
    """All settings as they were read, or the values that are `in_force` with the places they were read at."""
    settings = in_force or loaded.settings
    found: list[EffectiveSetting] = []
    for name, field in schema.model_fields.items():
        if settings is not None:
            value: object = getattr(settings, name)
        else:
            value = loaded.sources.values.get(name, field.get_default(call_default_factory=True, validated_data={}))
        shown = SET if is_secret(field) and value is not None else _shown(value)
        origin = loaded.sources.origins.get(name, "default")
        found.append(EffectiveSetting(name, shown, origin, field.description or ""))
    return found


def waiting_for_a_start(live: Iterable[str], in_force: Model, read: Model) -> list[str]:
    """Names of settings that were read with another value, and change at the next start only."""
    fixed = [name for name in type(in_force).model_fields if name not in frozenset(live)]
    return [name for name in fixed if getattr(in_force, name) != getattr(read, name)]


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(_shown(item) for item in cast("Sequence[object]", value)) or "-"
    if isinstance(value, Section):
        return str(getattr(value, "name", "table"))
    if isinstance(value, dict):
        return "table"
    if isinstance(value, SecretStr) or (isinstance(value, str) and "@" in value):
        return SET  # a URL with an @ may hold a password
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None or value == "" else str(value)
