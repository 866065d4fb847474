"""Reads flags, variables and the file, and remembers which value came from where."""

import json
import os
import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from deepseek_gateway.config.toml_lines import TomlLines, TomlPath
from deepseek_gateway.errors import ConfigurationError

PREFIX = "GATEWAY_"
CONFIG_VARIABLE = "GATEWAY_CONFIG"
CONFIG_NAME = "gateway.toml"

_SERVICE_LINK = re.compile(r"GATEWAY_(?:.*_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_\w+)")
"""Kubernetes sets these for a service whose name begins with `gateway`."""


class SourceError(Exception):
    """The file cannot be read as TOML; the message is for the operator."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A TOML file as it was read."""

    path: Path
    text: str
    values: dict[str, Any]
    lines: TomlLines

    def where(self, path: TomlPath) -> str:
        """`file:line` of a value."""
        line = self.lines.find(path)
        return str(self.path) if line is None else f"{self.path}:{line}"


@dataclass(frozen=True, slots=True)
class Sources:
    """Raw values, the strongest for each name: a flag, else a variable, else the file. `origins` says which."""

    file: ConfigFile | None
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    origins: dict[str, str] = field(default_factory=dict[str, str])
    faults: list[str] = field(default_factory=list[str])


def find_config(given: Path | None, state_dir: Path) -> Path | None:
    """The file to read: the flag's, the variable's, or the state directory's if there is one.

    Raises:
        ConfigurationError: nobody may look into the state directory.
    """
    named = given or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    if named is not None:
        return named.expanduser().absolute()
    beside = state_dir / CONFIG_NAME
    try:
        return beside if beside.is_file() else None
    except OSError as error:
        raise ConfigurationError(f"{state_dir} cannot be used: {error.strerror}") from error


def read_file(path: Path) -> ConfigFile:
    """Read a TOML file.

    Raises:
        SourceError: it is not there, or no TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return ConfigFile(path, text, tomllib.loads(text), TomlLines(text))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # tomllib's own, and text that is not UTF-8
        raise SourceError(f"{path}: this is no TOML: {error}") from None


def gather(fields: Mapping[str, FieldInfo], flags: Mapping[str, object], file: ConfigFile | None) -> Sources:
    """Merge what is given; unknown names of the file stay in, for the schema to refuse."""
    sources = Sources(file)
    for name, value in (file.values if file is not None else {}).items():
        sources.values[name] = value
        sources.origins[name] = file.where((name,)) if file is not None else ""
    for variable, text in sorted(os.environ.items()):
        name = variable.upper().removeprefix(PREFIX).lower()
        if variable.upper().startswith(PREFIX) and name in fields:
            _take(sources, fields[name], name, text, variable)
    for name, value in flags.items():
        if value is not None:
            _take(sources, fields[name], name, value, flag_name(name))
    return sources


def unknown_variables(known: Iterable[str]) -> list[str]:
    """GATEWAY_* variables that name no setting: most likely misspelt."""
    names = {f"{PREFIX}{name}".upper() for name in known} | {CONFIG_VARIABLE}
    variables = (name for name in os.environ if name.startswith(PREFIX) and name not in names)
    return sorted(name for name in variables if not _SERVICE_LINK.fullmatch(name))


def flag_name(name: str) -> str:
    """The flag of a setting; two are shorter than their setting, and one is singular."""
    return {"state_dir": "--state", "upstreams": "--upstream"}.get(name, f"--{name.replace('_', '-')}")


def _take(sources: Sources, field_info: FieldInfo, name: str, value: object, origin: str) -> None:
    sources.origins[name] = origin
    try:
        sources.values[name] = _decode(field_info, value) if isinstance(value, str) else value
    except ValueError as error:
        sources.values.pop(name, None)
        sources.faults.append(f"{origin}: this is no JSON: {error}")


def _decode(field_info: FieldInfo, text: str) -> object:
    """Text of a variable or flag: lists are separated by commas; lists and tables may be JSON."""
    kinds = _kinds(field_info.annotation)
    if kinds & {tuple, list, dict, set, frozenset}:
        if text.lstrip().startswith(("[", "{")):
            return json.loads(text)
        if dict not in kinds:
            return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _kinds(annotation: Any) -> set[Any]:
    """The outermost types of an annotation, without None and Annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in {Union, types.UnionType}:
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {origin or annotation}
