"""Sources to a checked configuration; every fault is told at once, by the name and place it was given at."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from deepseek_gateway.config.secrets import is_reference
from deepseek_gateway.config.sections import Section, is_secret
from deepseek_gateway.config.sources import (
    CONFIG_NAME,
    PREFIX,
    SourceError,
    Sources,
    find_config,
    gather,
    read_file,
    unknown_variables,
)
from deepseek_gateway.config.toml_lines import TomlPath

Model = TypeVar("Model", bound=Section)

_SHOWN = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class LoadedConfig(Generic[Model]):
    """What was read. `settings` is there when its values are good, even if there are other faults."""

    settings: Model | None
    sources: Sources
    faults: tuple[str, ...]

    @property
    def path(self) -> Path | None:
        """The file that was read."""
        return self.sources.file.path if self.sources.file is not None else None


def load_config(
    schema: type[Model], state_dir: Path, flags: Mapping[str, object], config: Path | None = None
) -> LoadedConfig[Model]:
    """Read and check everything; raises nothing."""
    path = find_config(config, state_dir)
    try:
        file = read_file(path) if path is not None else None
    except SourceError as error:
        return LoadedConfig(None, gather(schema.model_fields, flags, None), (str(error),))
    sources = gather(schema.model_fields, flags, file)
    faults = [*sources.faults, *_misplaced(sources, state_dir), *_exposed(schema, sources)]
    faults += [_unknown_variable(schema, variable) for variable in unknown_variables(schema.model_fields)]
    settings: Model | None = None
    try:
        settings = schema.model_validate(sources.values)
    except ValidationError as error:
        faults += [_fault(schema, sources, details) for details in _causes(error.errors())]
    return LoadedConfig(settings, sources, tuple(faults))


def section_at(schema: type[Section], path: TomlPath) -> type[Section] | None:
    """The model of the table at a path."""
    here: type[Section] | None = schema
    for part in path:
        if isinstance(part, int):
            continue
        field = here.model_fields.get(part) if here is not None else None
        here = None if field is None else _section_within(field.annotation)
    return here


def nearest(name: str, known: Mapping[str, object]) -> str:
    """`; did you mean …?`, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f": did you mean {close[0]}?" if close else ""


def _section_within(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_within(part))), None)


def _unknown_variable(schema: type[Section], variable: str) -> str:
    known = difflib.get_close_matches(variable.removeprefix(PREFIX).lower(), schema.model_fields, 1, 0.6)
    return f"{variable} names no setting{f': did you mean {PREFIX}{known[0].upper()}?' if known else ''}"


def _causes(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are too short only because an item of theirs is wrong."""
    paths = [error["loc"] for error in errors]
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(path[: len(error["loc"])] == error["loc"] and path != error["loc"] for path in paths)
    ]


def _fault(schema: type[Section], sources: Sources, details: ErrorDetails) -> str:
    path: TomlPath = details["loc"]
    name = str(path[0]) if path else ""
    message = details["msg"].removeprefix("Value error, ")
    origin = sources.origins.get(name, "")
    place = _dotted(path)
    if sources.file is not None and origin.startswith(str(sources.file.path)):
        place = f"{sources.file.where(path)}: {place}"
    elif origin:
        rest = "" if _is_shorthand(sources.values[name], path) else _dotted(path).removeprefix(name)
        place = f"{origin}{rest}"
    if details["type"] == "extra_forbidden":
        section = section_at(schema, path[:-1])
        return f"{place} names no setting{nearest(str(path[-1]), section.model_fields if section else {})}"
    if details["type"] == "missing":
        return f"{place} is missing"
    if origin.upper() == f"{PREFIX}PORT" and str(details["input"]).startswith("tcp://"):
        message += " (Kubernetes sets it for a service named `gateway`: set enableServiceLinks: false)"
    shown = _shown(schema, path, details["input"])
    return f"{place}={shown}: {message}" if shown else f"{place}: {message}"


def _dotted(path: TomlPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _is_shorthand(value: object, path: TomlPath) -> bool:
    """Whether a value was written as plain text, without the names that the path has."""
    if isinstance(value, list) and len(path) > 1 and isinstance(path[1], int):
        return not isinstance(cast("list[object]", value)[path[1]], dict)
    return False


def _shown(schema: type[Section], path: TomlPath, value: object) -> str:
    """The wrong value, unless it is or may hold a secret."""
    section = section_at(schema, path[:-1])
    field = section.model_fields.get(str(path[-1])) if section is not None and path else None
    if field is not None and is_secret(field):
        return "…"
    if not isinstance(value, _SHOWN):
        return ""
    return "…" if "@" in str(value) else repr(value)[:200]


def _misplaced(sources: Sources, state_dir: Path) -> list[str]:
    file = sources.file
    if file is None or "state_dir" not in file.values or file.path != state_dir / CONFIG_NAME:
        return []
    return [f"{file.where(('state_dir',))}: state_dir cannot stand in a file found by it: give the file by --config"]


def _exposed(schema: type[Section], sources: Sources) -> list[str]:
    """Secrets as plain text in a file that others can read."""
    file = sources.file
    if file is None or not file.path.stat().st_mode & 0o077:
        return []
    message = "stands in a file that others can read: write env:NAME or file:/path, or chmod 600 the file"
    return [f"{file.where(path)}: {_dotted(path)} {message}" for path in _plain_secrets(schema, file.values, ())]


def _plain_secrets(section: type[Section], values: dict[str, Any], path: TomlPath) -> list[TomlPath]:
    found: list[TomlPath] = []
    for name, value in values.items():
        field = section.model_fields.get(name)
        if field is None:
            continue
        inner = _section_within(field.annotation)
        if is_secret(field) and not is_reference(value):
            found.append((*path, name))
        elif inner is not None:
            many = cast("list[Any]", value) if isinstance(value, list) else [value]
            for at, item in enumerate(many):
                if isinstance(item, dict):
                    here = (*path, name, at) if isinstance(value, list) else (*path, name)
                    found += _plain_secrets(inner, cast("dict[str, Any]", item), here)
    return found
