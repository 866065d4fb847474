"""Regular expressions of JavaScript's kind (ECMA-262, which JSON Schema refers to) as grammar trees.

A pattern stands for the whole text: what `a+` matches within a longer text, a model would have to guess. What a grammar
cannot say (look-around, back references, word boundaries) is refused. Classes whose members Python, JavaScript and
others disagree on hold what all of them agree on.
"""

import string
from dataclasses import dataclass
from typing import Final

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.limits import MAX_NESTING, MAX_REPEATS
from deepseek_engine.grammar.nodes import Alt, Chars, Node, Repeat, Seq, Text

_NON_ASCII: Final = Chars.of((0x80, 0xD7FF), (0xE000, 0x10FFFF))
_SURE_LETTERS: Final = Chars.of((0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x3041, 0x3096), (0x4E00, 0x9FFF))
_UNSURE: Final = _NON_ASCII - _SURE_LETTERS
_DIGITS: Final = Chars.of(string.digits)
_WORD: Final = Chars.of(string.ascii_letters + string.digits + "_")
_SPACE: Final = Chars.of(" \t\n\r\f\v")
_LINE_ENDS: Final = Chars.of("\n\r\u2028\u2029")

# Members in every dialect, and members in some.
_CLASSES: Final = {
    "d": (_DIGITS, _DIGITS | _UNSURE),
    "w": (_WORD, _WORD | _NON_ASCII),
    "s": (_SPACE, _SPACE | Chars.of((0x1C, 0x1F)) | _UNSURE),
}
_CONTROLS: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}


@dataclass(frozen=True, slots=True)
class _Anchor:
    """`^` or `$` while parsing; none is left in what is given back."""

    is_start: bool


_Parsed = Node | _Anchor


def parse_regex(pattern: str) -> Node:
    """The tree of a pattern.

    Raises:
        GrammarError: it is wrong, or holds something that a grammar cannot say.
    """
    return _Parser(pattern).parse()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0

    def parse(self) -> Node:
        node = self._alternatives()
        if self._at < len(self._pattern):
            raise self._error("a closing bracket without an opening one")
        return node

    def _alternatives(self) -> Node:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._error(f"brackets are nested more than {MAX_NESTING} deep")
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        self._depth -= 1
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _sequence(self) -> Node:
        parts: list[_Parsed] = []
        while self._at < len(self._pattern) and self._peek() not in "|)":
            atom = self._atom()
            parts.append(atom if isinstance(atom, _Anchor) else self._quantified(atom))
        return Seq(tuple(self._without_anchors(parts)))

    def _without_anchors(self, parts: list[_Parsed]) -> list[Node]:
        """The parts between `^` and `$`, which say what holds anyway: the pattern stands for the whole text."""
        is_inner = self._depth > 1
        first = next((i for i, part in enumerate(parts) if not (isinstance(part, _Anchor) and part.is_start)), 0)
        nodes: list[Node] = []
        for index, part in enumerate(parts):
            if not isinstance(part, _Anchor):
                nodes.append(part)
                continue
            is_outside = index < first if part.is_start else all(isinstance(p, _Anchor) for p in parts[index:])
            if is_inner or not is_outside:
                raise self._error(f"{'^' if part.is_start else '$'} is supported at the ends of the pattern only")
        return nodes

    def _atom(self) -> _Parsed:
        char = self._next()
        match char:
            case "^" | "$":
                return _Anchor(char == "^")
            case ".":
                return ~_LINE_ENDS
            case "(":
                return self._group()
            case "[":
                return self._char_class()
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                raise self._error(f"{char} has nothing before it to repeat")
            case _:
                return Text(char)

    def _group(self) -> Node:
        if self._take("?"):
            if self._take("<"):
                if self._peek() in "=!":
                    raise self._error("look-behind is not supported")
                name, bracket, _ = self._pattern[self._at :].partition(">")
                if not bracket or not name.isidentifier():
                    raise self._error("a group's name is wrong")
                self._at += len(name) + 1
            elif not self._take(":"):
                what = "look-ahead" if self._peek() in "=!" else f"(?{self._peek()}"
                raise self._error(f"{what} is not supported")
        node = self._alternatives()
        if not self._take(")"):
            raise self._error("a bracket is not closed")
        return node

    def _quantified(self, atom: Node) -> Node:
        low, high = 1, 1
        bounds: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        char = self._peek()
        if char in bounds:
            self._at += 1
            low, high = bounds[char]
        elif char == "{" and (found := self._bounds()) is not None:
            low, high = found
        else:
            return atom
        self._take("?")  # a lazy quantifier matches the same texts
        if self._peek() in ("*", "+", "{") and (self._peek() != "{" or self._bounds() is not None):
            raise self._error("a repetition cannot be repeated: put it in brackets")
        return Repeat(atom, low, high)

    def _bounds(self) -> tuple[int, int | None] | None:
        """`{2}`, `{2,}` or `{2,5}`; None if the brace stands for itself."""
        text, bracket, _ = self._pattern[self._at + 1 :].partition("}")
        low, comma, high = text.partition(",")
        if not bracket or not _is_count(low) or not (not high or _is_count(high)):
            return None
        self._at += len(text) + 2
        bounds = int(low), (int(high) if high else None) if comma else int(low)
        if max(bounds[0], bounds[1] or 0) > MAX_REPEATS:
            raise self._error(f"{{{text}}} repeats more than {MAX_REPEATS} times")
        if bounds[1] is not None and bounds[1] < bounds[0]:
            raise self._error(f"{{{text}}} ends before it begins")
        return bounds

    def _char_class(self) -> Node:
        is_negated = self._take("^")
        if self._peek() == "]":  # nothing at all in JavaScript, a member in Python
            raise self._error("a class begins with ]: write \\]")
        members = Chars(())
        while not self._take("]"):
            start = self._class_member(is_negated=is_negated)
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                end = self._class_member(is_negated=is_negated)
                members |= self._span(start, end)
            else:
                members |= start if isinstance(start, Chars) else Chars.of(start)
        return ~members if is_negated else members

    def _span(self, start: Chars | str, end: Chars | str) -> Chars:
        if isinstance(start, Chars) or isinstance(end, Chars):
            raise self._error("a range needs single characters at both ends")
        if ord(start) > ord(end):
            raise self._error(f"the range {start}-{end} ends before it begins")
        return Chars.of((ord(start), ord(end))) & ~Chars(())  # without surrogates

    def _class_member(self, *, is_negated: bool) -> Chars | str:
        char = self._next()
        if char != "\\":
            return char
        found = self._escape(in_class=True, is_negated=is_negated)
        return found.text if isinstance(found, Text) else found

    def _escape(self, *, in_class: bool = False, is_negated: bool = False) -> Chars | Text:
        char = self._next()
        if char.lower() in _CLASSES:
            sure, possible = _CLASSES[char.lower()]
            # In a negated class what counts as a member is what some dialect takes for one.
            if char.islower():
                return possible if is_negated else sure
            return ~sure if is_negated else ~possible
        if char == "b" and in_class:
            return Text("\b")
        if char in _CONTROLS and not (char == "0" and self._peek().isdigit()):
            return Text(_CONTROLS[char])
        if char == "x":
            return Text(chr(self._hex(2)))
        if char == "u":
            return Text(self._unicode())
        if char == "c" and self._peek().isascii() and self._peek().isalpha():
            return Text(chr(ord(self._next()) & 31))
        if char.isalnum() or char == "_":
            raise self._error(f"\\{char} is not supported")
        return Text(char)

    def _unicode(self) -> str:
        if self._take("{"):
            digits, bracket, _ = self._pattern[self._at :].partition("}")
            if not bracket or not 0 < len(digits) <= 6 or not _is_hex(digits) or int(digits, 16) > 0x10FFFF:
                raise self._error("\\u{ needs the number of a character in hexadecimal digits")
            self._at += len(digits) + 1
            code = int(digits, 16)
        else:
            code = self._hex(4)
            if 0xD800 <= code < 0xDC00 and self._pattern.startswith("\\u", self._at):
                self._at += 2
                code = 0x10000 + ((code - 0xD800) << 10) + (self._hex(4) - 0xDC00)
        if 0xD800 <= code <= 0xDFFF or not 0 <= code <= 0x10FFFF:
            raise self._error("half a surrogate pair is no character")
        return chr(code)

    def _hex(self, count: int) -> int:
        digits = self._pattern[self._at : self._at + count]
        if len(digits) < count or not _is_hex(digits):
            raise self._error(f"an escape needs {count} hexadecimal digits")
        self._at += count
        return int(digits, 16)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1] or "\0"

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise self._error("it ends too early")
        self._at += 1
        return self._pattern[self._at - 1]

    def _take(self, char: str) -> bool:
        is_there = self._at < len(self._pattern) and self._pattern[self._at] == char
        self._at += is_there
        return is_there

    def _error(self, what: str) -> GrammarError:
        shown = self._pattern if len(self._pattern) <= 60 else self._pattern[:57] + "..."
        return GrammarError(f"the pattern {shown!r} cannot be used: {what} (at character {self._at})")


def length_bounds(node: Node) -> tuple[int, int | None]:
    """The fewest and the most characters of a pattern's texts; None is without end."""
    match node:
        case Text(text):
            return len(text), len(text)
        case Chars():
            return 1, 1
        case Seq(parts):
            bounds = [length_bounds(part) for part in parts]
            highs = [high for _, high in bounds]
            return sum(low for low, _ in bounds), None if None in highs else sum(high or 0 for high in highs)
        case Alt(options):
            bounds = [length_bounds(option) for option in options]
            highs = [high for _, high in bounds]
            return min(low for low, _ in bounds), None if None in highs else max(high or 0 for high in highs)
        case Repeat(inner, low, high):
            least, most = length_bounds(inner)
            return least * low, None if high is None or most is None else most * high
        case _:
            raise AssertionError("a pattern has no rules")


def with_length(node: Node, low: int, high: int | None) -> Node | None:
    """The pattern held to lengths; None if that takes more than a change of one repetition."""
    least, most = length_bounds(node)
    if least >= low and (high is None or (most is not None and most <= high)):
        return node
    while isinstance(node, Seq) and len(node.parts) == 1:
        node = node.parts[0]
    if isinstance(node, Repeat) and length_bounds(node.node) == (1, 1):
        highs = [bound for bound in (node.high, high) if bound is not None]
        new_low, new_high = max(node.low, low), min(highs, default=None)
        return Repeat(node.node, new_low, new_high) if new_high is None or new_low <= new_high else Alt(())
    return None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _is_hex(text: str) -> bool:
    return all(char in string.hexdigits for char in text)
