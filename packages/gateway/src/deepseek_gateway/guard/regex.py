r"""Regular expressions that cannot be slow: matched in time linear in the text, on folded text, of bounded length.

    abc  .  [a-z]  [^0-9]  \d \w \s \D \W \S  (ab|cd)  (?:ab)  x?  x{3}  x{2,5}  x{,5}

Without `*`, `+` and `{2,}` a match has a longest length, so a stream holds back only so much. Patterns become one
non-deterministic automaton; its deterministic states are made when text first leads to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deepseek_gateway.guard.fold import fold, is_word

MAX_LENGTH = 64
"""Characters in the longest match of one expression."""
MAX_NODES = 2000
MAX_STATES = 4000
MAX_WAYS = 256
MAX_DEPTH = 20

Test = Callable[[str], bool]


class RegexError(ValueError):
    """An expression outside the safe subset; the message says what and where."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an expression: one character, a sequence, or alternatives; repeated `least` to `most` times."""

    test: Test | None = None
    sequence: tuple["Part", ...] = ()
    choices: tuple["Part", ...] = ()
    least: int = 1
    most: int = 1

    def longest(self) -> int:
        """Characters of the longest match."""
        if self.test is not None:
            return self.most
        inner = [part.longest() for part in self.sequence or self.choices]
        return self.most * (sum(inner) if self.sequence else max(inner, default=0))

    def shortest(self) -> int:
        """Characters of the shortest match."""
        if self.test is not None:
            return self.least
        inner = [part.shortest() for part in self.sequence or self.choices]
        return self.least * (sum(inner) if self.sequence else min(inner, default=0))

    def nodes(self) -> int:
        """Automaton nodes that it needs."""
        return self.most * (1 + sum(part.nodes() for part in self.sequence or self.choices))


def parse(pattern: str) -> Part:
    """Read an expression.

    Raises:
        RegexError: it is outside the subset, too long, or matches nothing at all.
    """
    part = _Parser(pattern).whole()
    if part.nodes() > MAX_NODES or part.longest() > MAX_LENGTH:
        raise RegexError(f"the expression can match {part.longest()} characters; the most is {MAX_LENGTH}: repeat less")
    if part.shortest() == 0:
        raise RegexError("the expression matches the empty text: make one part of it certain")
    return part


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0

    def whole(self) -> Part:
        part = self._alternatives()
        if self._at < len(self._pattern):
            raise self._fault("a closing parenthesis without an opening one")
        return part

    def _alternatives(self) -> Part:
        choices = [self._sequence()]
        while self._took("|"):
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else Part(choices=tuple(choices))

    def _sequence(self) -> Part:
        parts: list[Part] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            parts.append(self._repeated(self._atom()))
        return Part(sequence=tuple(parts))

    def _atom(self) -> Part:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return Part(test=self._class())
        if char == ".":
            return Part(test=lambda _: True)
        if char == "\\":
            return self._escape()
        if char in "*+?{}])^$":
            raise self._fault(f"{char!r} cannot stand here; write \\{char} for the character itself")
        return _literal(char, self)

    def _group(self) -> Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fault(f"more than {MAX_DEPTH} groups in each other")
        if self._took("?") and not self._took(":"):
            raise self._fault("of the groups that begin with (? only (?: is known")
        part = self._alternatives()
        if not self._took(")"):
            raise self._fault("a group is not closed")
        self._depth -= 1
        return part

    def _escape(self) -> Part:
        char = self._next()
        if char in _CLASSES:
            return Part(test=_CLASSES[char])
        if char.isalnum():
            raise self._fault(f"\\{char} is not known")
        return _literal(char, self)

    def _class(self) -> Test:
        is_negated = self._took("^")
        singles: set[str] = set()
        ranges: list[tuple[str, str]] = []
        classes: list[Test] = []
        while not self._took("]"):
            char = self._next()
            if char == "\\":
                char = self._next()
                if char in _CLASSES:
                    classes.append(_CLASSES[char])
                    continue
            first = self._one(char)
            if self._pattern[self._at : self._at + 1] == "-" and self._pattern[self._at + 1 : self._at + 2] != "]":
                self._next()
                last = self._one(self._next())
                if last < first:
                    raise self._fault(f"the range {first}-{last} is empty")
                ranges.append((first, last))
            else:
                singles.add(first)
        if not (singles or ranges or classes):
            raise self._fault("an empty class")

        def test(char: str) -> bool:
            is_in = char in singles or any(first <= char <= last for first, last in ranges)
            return (is_in or any(known(char) for known in classes)) != is_negated

        return test

    def _repeated(self, part: Part) -> Part:
        if self._took("?"):
            least, most = 0, 1
        elif self._took("{"):
            least, most = self._bounds()
        elif self._pattern[self._at : self._at + 1] in {"*", "+"}:
            raise self._fault("* and + have no bound: write {0,20} or {1,20}")
        else:
            return part
        if self._pattern[self._at : self._at + 1] in {"*", "+", "?", "{"}:
            raise self._fault("two repetitions of one part")
        if part.least == part.most == 1:
            return Part(part.test, part.sequence, part.choices, least, most)
        return Part(sequence=(part,), least=least, most=most)

    def _bounds(self) -> tuple[int, int]:
        end = self._pattern.find("}", self._at)
        least, comma, most = self._pattern[self._at : max(end, self._at)].partition(",")
        numbers = [least or "0", most if comma else least]
        if end < 0 or not all(number.isascii() and number.isdigit() and len(number) < 4 for number in numbers):
            raise self._fault("a repetition is {3}, {2,5} or {,5}")
        self._at = end + 1
        first, last = int(numbers[0]), int(numbers[1])
        if not 0 <= first <= last or last == 0:
            raise self._fault(f"the repetition {{{first},{last}}} is empty")
        return first, last

    def _one(self, char: str) -> str:
        folded = fold(char)
        if len(folded) != 1:
            raise self._fault(f"{char!r} is {len(folded)} characters when folded, so it cannot be in a class")
        return folded

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise self._fault("the expression ends too early")
        self._at += 1
        return self._pattern[self._at - 1]

    def _took(self, char: str) -> bool:
        is_there = self._pattern[self._at : self._at + 1] == char
        self._at += is_there
        return is_there

    def _fault(self, message: str) -> RegexError:
        return RegexError(f"at character {self._at}: {message}")


def _literal(char: str, _: _Parser) -> Part:
    folded = fold(char)
    if len(folded) == 1:
        return Part(test=folded.__eq__)
    return Part(sequence=tuple(Part(test=one.__eq__) for one in folded))


_CLASSES: dict[str, Test] = {
    "d": str.isdecimal,
    "w": is_word,
    "s": str.isspace,
    "D": lambda char: not char.isdecimal(),
    "W": lambda char: not is_word(char),
    "S": lambda char: not char.isspace(),
}


@dataclass(slots=True)
class _Node:
    """A place in the automaton: a test that leads on, free ways on, or the end of an expression."""

    test: Test | None = None
    after: int = -1
    free: list[int] = field(default_factory=list[int])
    accepts: int = -1
    owner: int = -1


@dataclass(slots=True)
class State:
    """A deterministic state: the expressions that end here, those that can go on, and where each character leads."""

    nodes: frozenset[int]
    accepts: tuple[int, ...]
    live: tuple[int, ...]
    ways: dict[str, "State | None"] = field(default_factory=dict[str, "State | None"])


class Automaton:
    """All expressions of one policy, numbered as given."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._nodes: list[_Node] = []
        self._owner = 0
        starts: list[int] = []
        for self._owner, part in enumerate(parts):
            starts.append(self._build(part, self._node(_Node(accepts=self._owner))))
        self._states: dict[frozenset[int], State] = {}
        self._start = self._state(self._close(frozenset(starts)))
        self.longest = max((part.longest() for part in parts), default=0)

    def walk(self, text: str, start: int) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
        """Matches that begin at `start`, as (expression, end), and the expressions that more text could still match."""
        found: list[tuple[int, int]] = []
        state = self._start
        for position in range(start, len(text)):
            char = text[position]
            after = state.ways.get(char, state)
            if after is state:
                after = self._step(state, char)
            if after is None:
                return found, ()
            state = after
            found.extend((number, position + 1) for number in state.accepts)
        return found, state.live

    def _step(self, state: State, char: str) -> State | None:
        nodes = self._nodes
        reached = frozenset(
            nodes[at].after for at in state.nodes if (test := nodes[at].test) is not None and test(char)
        )
        after = self._state(self._close(reached)) if reached else None
        if len(state.ways) >= MAX_WAYS:
            state.ways.clear()
        state.ways[char] = after
        return after

    def _state(self, nodes: frozenset[int]) -> State:
        state = self._states.get(nodes)
        if state is None:
            if len(self._states) >= MAX_STATES:  # an odd text: begin again rather than grow
                self._states.clear()
                self._start = State(self._start.nodes, (), self._start.live)
            accepts = {self._nodes[at].accepts for at in nodes} - {-1}
            live = {self._nodes[at].owner for at in nodes if self._nodes[at].test is not None}
            state = State(nodes, tuple(sorted(accepts)), tuple(sorted(live)))
            self._states[nodes] = state
        return state

    def _close(self, nodes: frozenset[int]) -> frozenset[int]:
        reached, waiting = set(nodes), list(nodes)
        while waiting:
            for after in self._nodes[waiting.pop()].free:
                if after not in reached:
                    reached.add(after)
                    waiting.append(after)
        return frozenset(at for at in reached if self._nodes[at].test is not None or self._nodes[at].accepts >= 0)

    def _build(self, part: Part, after: int) -> int:
        """Add a part that goes on to the node `after`; gives its first node."""
        end = after
        for number in range(part.most):
            one = self._build_once(part, after)
            after = one if number >= part.most - part.least else self._node(_Node(free=[one, end]))
        return after

    def _build_once(self, part: Part, after: int) -> int:
        if part.test is not None:
            return self._node(_Node(part.test, after))
        if part.choices:
            return self._node(_Node(free=[self._build(choice, after) for choice in part.choices]))
        for inner in reversed(part.sequence):
            after = self._build(inner, after)
        return after

    def _node(self, node: _Node) -> int:
        node.owner = self._owner
        self._nodes.append(node)
        return len(self._nodes) - 1
