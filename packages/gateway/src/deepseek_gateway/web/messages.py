"""What the pages say, in each language: `messages.toml`."""

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from importlib.resources import files
from typing import Any, cast


class Language(StrEnum):
    """Languages of the pages; a value is the `lang` of a page."""

    ENGLISH = "en"
    CHINESE = "zh"


class Messages:
    """The catalogue: a key such as `login.title` has a text in each language."""

    def __init__(self, texts: Mapping[str, Mapping[Language, str]]) -> None:
        self._texts = texts

    @property
    def texts(self) -> Mapping[str, Mapping[Language, str]]:
        """All of it."""
        return self._texts

    def text(self, language: Language, key: str, **values: object) -> str:
        """A text with its values.

        Raises:
            KeyError: there is no such key, or a value is missing.
        """
        return self._texts[key][language].format(**values)

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return key in self._texts

    def under(self, language: Language, prefix: str) -> dict[str, str]:
        """The texts whose keys begin so, by the rest of their key: what a script gets."""
        return {
            key.removeprefix(prefix): texts[language] for key, texts in self._texts.items() if key.startswith(prefix)
        }


def load_messages() -> Messages:
    """The catalogue of this version."""
    tree = tomllib.loads(files("deepseek_gateway.web").joinpath("messages.toml").read_text("utf-8"))
    texts: dict[str, dict[Language, str]] = {}
    for section, entries in tree.items():
        for name, by_language in cast("dict[str, dict[str, Any]]", entries).items():
            texts[f"{section}.{name}"] = {Language(code): str(text) for code, text in by_language.items()}
    return Messages(texts)


def preferred_language(accept_language: str) -> Language:
    """The language that an Accept-Language header wants most; English when it wants none of ours."""
    best, best_weight = Language.ENGLISH, 0.0
    for part in accept_language[:500].split(","):
        tag, _, parameter = part.strip().partition(";")
        weight = _weight(parameter)
        for language in Language:
            if tag.lower().split("-")[0] == language.value and weight > best_weight:
                best, best_weight = language, weight
    return best


def _weight(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    try:
        return float(value) if name == "q" else 1.0
    except ValueError:
        return 0.0
