"""Matching module names as PEFT does, with regular expressions that cannot run away.

An adapter's patterns come from whoever trained it, and Python's `re` backtracks: a pattern such as `(a+)+b` would hold
the interpreter's lock, and with it the engine's loop, for minutes. So what is accepted is the kind that people write
for module names: no group with a quantifier of its own, no back-references or look-around, and few enough choices that
trying all of them takes milliseconds.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

from deepseek_engine.errors import AdapterError

MAX_PATTERN_CHARS: Final = 1024
MAX_STEPS: Final = 1_000_000
"""Ways in which a pattern may be tried on one name: at some tens of nanoseconds each, the longest pause is 30 ms."""
_NAME_CHARS: Final = 64

_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_CLASS: Final = re.compile(r"\[[^\]]*\]")
_TAIL: Final = "(?:.*x)?"
"""What `NamePattern.tail` puts before a pattern, as it reads with escapes replaced."""
_UNSUPPORTED: Final = re.compile(r"\(\?(?!:)|\)[*+{]")


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A compiled pattern for whole module names."""

    regex: re.Pattern[str]

    def matches(self, module: str) -> bool:
        """Whether the whole name matches."""
        return self.regex.fullmatch(module) is not None

    @staticmethod
    def whole(pattern: str) -> "NamePattern":
        """A pattern for a whole name, as in `target_modules`.

        Raises:
            AdapterError: it is not a regular expression, or one that could run for long.
        """
        return NamePattern(_compile(pattern, pattern))

    @staticmethod
    def tail(pattern: str) -> "NamePattern":
        """A pattern for a whole name or its last parts, as the keys of `rank_pattern`; raises as `whole` does."""
        return NamePattern(_compile(pattern, rf"(?:.*\.)?(?:{pattern})"))


def layer_pattern(list_name: str) -> re.Pattern[str]:
    """Finds a layer's number, group 1, at the beginning of a module's name: the first number after `list_name`.

    Raises:
        AdapterError: as `NamePattern.whole` does.
    """
    return _compile(list_name, rf"(?:^|.*?\.){list_name}\.(\d+)\.")


def _compile(given: str, pattern: str) -> re.Pattern[str]:
    shown = repr(given if len(given) <= 80 else given[:77] + "...")
    if len(given) > MAX_PATTERN_CHARS:
        raise AdapterError(f"the pattern {shown} is longer than {MAX_PATTERN_CHARS} characters: list the module names")
    skeleton = _CLASS.sub("x", _ESCAPED.sub("x", pattern))
    if _UNSUPPORTED.search(skeleton.removeprefix(_TAIL)) or re.search(r"\\\d", given):
        raise AdapterError(f"the pattern {shown} repeats a group or looks around: list the module names instead")
    if _num_ways(skeleton) > MAX_STEPS:
        raise AdapterError(f"the pattern {shown} could take long to match: list the module names instead")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise AdapterError(f"the pattern {shown} is not a regular expression: {error}") from error


def _num_ways(skeleton: str) -> int:
    """An upper bound on how often a backtracking matcher tries a pattern without repeated groups on one name."""
    num_quantifiers = sum(skeleton.count(sign) for sign in "*+{")
    num_optional = skeleton.count("?") - skeleton.count("(?")
    alternatives = math.prod(part.count("|") + 1 for part in skeleton.split("("))
    # So many places for the ends of the quantifiers, in order, in one name.
    return math.comb(_NAME_CHARS + num_quantifiers, num_quantifiers) * 2**num_optional * alternatives
