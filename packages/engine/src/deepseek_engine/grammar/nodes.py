"""Grammars as trees, and as the text that the compiler reads (GBNF).

What no text can satisfy is an `Alt` without options. It is pruned before anything is written, so that a grammar never
leads to where nothing may follow.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Final

Ranges = tuple[tuple[int, int], ...]
"""Code points from and to, both included, in order and apart from each other."""

_LAST: Final = 0x10FFFF
_SURROGATES: Final = (0xD800, 0xDFFF)
_SHORT_BOUNDS: Final[dict[tuple[int, int | None], str]] = {(0, None): "*", (1, None): "+", (0, 1): "?"}


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set."""

    ranges: Ranges

    @classmethod
    def of(cls, *spans: str | tuple[int, int]) -> "Chars":
        """From characters (each by itself) and spans of code points."""
        pairs: list[tuple[int, int]] = []
        for span in spans:
            pairs += [(ord(char), ord(char)) for char in span] if isinstance(span, str) else [span]
        return cls(_normalise(pairs))

    def __or__(self, other: "Chars") -> "Chars":
        return Chars(_normalise((*self.ranges, *other.ranges)))

    def __invert__(self) -> "Chars":
        gaps: list[tuple[int, int]] = []
        start = 0
        for low, high in _normalise((*self.ranges, _SURROGATES)):
            if start < low:
                gaps.append((start, low - 1))
            start = high + 1
        return Chars((*gaps, *([(start, _LAST)] if start <= _LAST else [])))

    def __and__(self, other: "Chars") -> "Chars":
        return ~(~self | ~other)

    def __sub__(self, other: "Chars") -> "Chars":
        return self & ~other

    def __iter__(self) -> Iterator[int]:
        for low, high in self.ranges:
            yield from range(low, high + 1)

    @property
    def is_empty(self) -> bool:
        """Whether no character is in it."""
        return not self.ranges


@dataclass(frozen=True, slots=True)
class Text:
    """These characters."""

    text: str


@dataclass(frozen=True, slots=True)
class Seq:
    """One after the other."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of them; without options, nothing at all."""

    options: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """From `low` to `high` times; None is without end."""

    node: "Node"
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Ref:
    """What the rule of this name says."""

    name: str


Node = Chars | Text | Seq | Alt | Repeat | Ref

NEVER: Final = Alt(())
EMPTY: Final = Text("")


def seq(*parts: Node | str) -> Node:
    """One after the other; a string stands for itself."""
    return Seq(tuple(Text(part) if isinstance(part, str) else part for part in parts))


def alt(*options: Node | str) -> Node:
    """One of them; a string stands for itself."""
    return Alt(tuple(Text(option) if isinstance(option, str) else option for option in options))


def optional(node: Node) -> Node:
    """It, or nothing."""
    return Repeat(node, 0, 1)


def to_ebnf(rules: Mapping[str, Node]) -> str | None:
    """The grammar's text; None if no text at all satisfies the rule `root`."""
    productive = _productive_rules(rules)
    if "root" not in productive:
        return None
    pruned = {name: _prune(node, productive) for name, node in rules.items() if name in productive}
    used = _used_rules(pruned)
    return "\n".join(f"{name} ::= {_write(node)}" for name, node in pruned.items() if name in used)


def _productive_rules(rules: Mapping[str, Node]) -> set[str]:
    """The rules that some finite text satisfies, by growing the set until it stays the same."""
    productive: set[str] = set()
    last_first = list(rules.items())[::-1]  # rules mostly refer to later ones, so that one round does it
    while True:
        num_before = len(productive)
        for name, node in last_first:
            if name not in productive and _can_end(node, productive):
                productive.add(name)
        if len(productive) == num_before:
            return productive


def _used_rules(rules: Mapping[str, Node]) -> set[str]:
    used, stack = {"root"}, ["root"]
    while stack:
        more = set(_references(rules[stack.pop()])) - used
        used |= more
        stack += more
    return used


def _references(node: Node) -> Iterator[str]:
    match node:
        case Seq(nodes) | Alt(nodes):
            for each in nodes:
                yield from _references(each)
        case Repeat(inner, _, _):
            yield from _references(inner)
        case Ref(name):
            yield name
        case _:
            return


def _can_end(node: Node, productive: set[str]) -> bool:
    match node:
        case Text():
            return True
        case Chars():
            return not node.is_empty
        case Seq(parts):
            return all(_can_end(part, productive) for part in parts)
        case Alt(options):
            return any(_can_end(option, productive) for option in options)
        case Repeat(inner, low, _):
            return low == 0 or _can_end(inner, productive)
        case Ref(name):
            return name in productive


def _prune(node: Node, productive: set[str]) -> Node:
    match node:
        case Seq(parts):
            return Seq(tuple(_prune(part, productive) for part in parts))
        case Alt(options):
            return Alt(tuple(_prune(option, productive) for option in options if _can_end(option, productive)))
        case Repeat(inner, low, high):
            return Repeat(_prune(inner, productive), low, high) if _can_end(inner, productive) else EMPTY
        case _:
            return node


def _write(node: Node) -> str:
    match node:
        case Text(text):
            return '"' + "".join(_escape(ord(char)) for char in text) + '"'
        case Chars(ranges):
            spans = (_escape(low) if low == high else f"{_escape(low)}-{_escape(high)}" for low, high in ranges)
            return f"[{''.join(spans)}]"
        case Seq(parts):
            return " ".join(_group(part) for part in parts) or '""'
        case Alt(options):
            return " | ".join(_group(option) for option in options)
        case Repeat(inner, low, high):
            short = _SHORT_BOUNDS.get((low, high))
            return _group(inner) + (short or f"{{{low},{'' if high is None else high}}}")
        case Ref(name):
            return name


def _group(node: Node) -> str:
    written = _write(node)
    return written if isinstance(node, Chars | Text | Ref) else f"({written})"


def _escape(code: int) -> str:
    char = chr(code)
    if char.isascii() and (char.isalnum() or char in " _,:;.{}()<>/|@!#%&=~'`$*+?"):
        return char
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def _normalise(pairs: Iterable[tuple[int, int]]) -> Ranges:
    def join(done: list[tuple[int, int]], pair: tuple[int, int]) -> list[tuple[int, int]]:
        if done and pair[0] <= done[-1][1] + 1:
            done[-1] = (done[-1][0], max(done[-1][1], pair[1]))
        else:
            done.append(pair)
        return done

    return tuple(reduce(join, sorted(pairs), list[tuple[int, int]]()))
