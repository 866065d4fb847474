"""The names that requests may give as `model`: the base model's own, and `base:adapter` for each loaded adapter."""

from dataclasses import dataclass
from typing import Final

from deepseek_engine.lora.directory import AdapterDirectory
from deepseek_engine.server.errors import ApiError

_SHOWN: Final = 20
"""Names in an error message at most; thousands of users may have an adapter each."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as a request named it; `parent` is the base model's name where it is an adapter's."""

    name: str
    adapter: str | None = None
    parent: str | None = None


class ServedModels:
    """Finds models by name.

    Args:
        base_names: the base model's, the default first.
        adapters: what is loaded.
    """

    def __init__(self, base_names: tuple[str, ...], adapters: AdapterDirectory) -> None:
        self._base_names = base_names
        self._adapters = adapters

    def find(self, name: str | None) -> ServedModel:
        """The model of a request; the base model if it names none.

        Raises:
            ApiError: 404, it is not served here.
        """
        if name is None:
            return ServedModel(self._base_names[0])
        if name in self._base_names:
            return ServedModel(name)
        base, colon, adapter = name.rpartition(":")
        if colon and base in self._base_names and adapter in self._adapters.names:
            return ServedModel(name, adapter, base)
        shown = [model.name for model in self.all()]
        more = "" if len(shown) <= _SHOWN else f" and {len(shown) - _SHOWN} more"
        raise ApiError(
            404,
            f"model {name[:100]!r} is not served here; there is: {', '.join(shown[:_SHOWN])}{more}",
            param="model",
            code="model_not_found",
        )

    def all(self) -> list[ServedModel]:
        """Every model: the base model under all its names, adapters under its first one."""
        parent = self._base_names[0]
        adapted = (ServedModel(f"{parent}:{name}", name, parent) for name in self._adapters.names)
        return [*map(ServedModel, self._base_names), *adapted]
