"""Fields of a config.json by name and type; what is missing or of another type is an error that names it."""

from typing import Any, Final, TypeVar, cast, overload

from deepseek_engine.errors import ModelLoadError

T = TypeVar("T")
Default = TypeVar("Default")
_REQUIRED: Final[Any] = object()
LARGEST_INTEGER: Final = 2**30
"""The product of two sizes has to fit 64 bits."""


class Fields:
    """A JSON object of a checkpoint's configuration. A null field counts as absent: transformers writes such."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self.source = source

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are there, in the file's order."""
        return tuple(self._values)

    @overload
    def integer(self, name: str) -> int: ...
    @overload
    def integer(self, name: str, default: Default) -> int | Default: ...
    def integer(self, name: str, default: Any = _REQUIRED) -> Any:
        """A whole number; every one in a configuration is a count or a size."""
        value = self._get(name, default, int)
        if isinstance(value, int) and value < 0:
            raise ModelLoadError(f"{self.source}: {name}={value} is negative")
        if isinstance(value, int) and value > LARGEST_INTEGER:
            raise ModelLoadError(
                f"{self.source}: {name}={value} is beyond {LARGEST_INTEGER}, and so no size of a model"
            )
        return value

    @overload
    def number(self, name: str) -> float: ...
    @overload
    def number(self, name: str, default: Default) -> float | Default: ...
    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """A number, whole or not."""
        value = self._get(name, default, (int, float))
        return float(value) if isinstance(value, int) else value

    @overload
    def text(self, name: str) -> str: ...
    @overload
    def text(self, name: str, default: Default) -> str | Default: ...
    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        """A string."""
        return self._get(name, default, str)

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        return bool(self._get(name, default, (bool, int)))

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers."""
        values = cast("list[Any]", self._get(name, _REQUIRED, list))
        if not all(isinstance(value, int | float) for value in values):
            raise ModelLoadError(f"{self.source}: {name} is not a list of numbers")
        return tuple(float(value) for value in values)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty if there is none."""
        return tuple(str(value) for value in cast("list[Any]", self._get(name, [], list)))

    def table(self, name: str) -> "Fields | None":
        """An object within."""
        value = self._get(name, None, dict)
        return None if value is None else Fields(cast("dict[str, Any]", value), f"{self.source}: {name}")

    def _get(self, name: str, default: Any, kind: type | tuple[type, ...]) -> Any:
        if name not in self._values:
            if default is _REQUIRED:
                raise ModelLoadError(f"{self.source} lacks the field {name!r}")
            return default
        value = self._values[name]
        if not isinstance(value, kind):
            wanted = kind.__name__ if isinstance(kind, type) else kind[-1].__name__
            raise ModelLoadError(f"{self.source}: {name}={value!r} is not of type {wanted}")
        return value
