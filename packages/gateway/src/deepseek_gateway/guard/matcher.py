"""Find the patterns of a policy in folded text, and say which beginnings of patterns a text ends in.

Literals are found by one Aho-Corasick automaton (ahocorasick_rs; other threads run meanwhile), expressions by one of
ours. Everything is compiled once and never changed: threads may share a matcher.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ahocorasick_rs import AhoCorasick, MatchKind

from deepseek_gateway.guard.entries import Level, Match, Rule
from deepseek_gateway.guard.fold import fold, has_lookalikes, is_disguised, is_mark, is_word, skeleton
from deepseek_gateway.guard.regex import Automaton, parse

HOLDS, ALLOWS, WATCHES = 1, 2, 4
"""What a live beginning is for: text must wait, a hit may be cancelled, a person may want to see it."""

KINDS = {Level.BLOCK: HOLDS, Level.MASK: HOLDS, Level.ALLOW: ALLOWS, Level.REVIEW: WATCHES}


class Span(NamedTuple):
    """Where a rule's pattern stands in a folded text."""

    end: int
    start: int
    rule: int


class Live(NamedTuple):
    """Where the first beginning of each kind starts that the text ends in; the text's length if there is none."""

    holds: int
    allows: int
    any: int


class Matcher:
    """The rules of one policy in one direction."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._folded = [fold(rule.entry.pattern) for rule in rules]
        self._by_skeleton: list[list[int]] = []
        self._prefixes: dict[str, int] = {}
        self._longest_by_last: dict[str, int] = {}
        self._literals = self._compile_literals()
        self._regexes = [number for number, rule in enumerate(rules) if rule.entry.match is Match.REGEX]
        parts = [parse(rules[number].entry.pattern) for number in self._regexes]
        self._automaton = Automaton(parts) if parts else None
        self._regex_kinds = [KINDS[rules[number].level] for number in self._regexes]

    @property
    def can_change(self) -> bool:
        """Whether any rule blocks or masks."""
        return any(KINDS[rule.level] == HOLDS for rule in self.rules)

    @property
    def can_block(self) -> bool:
        """Whether any rule blocks."""
        return any(rule.level is Level.BLOCK for rule in self.rules)

    def is_quiet(self, text: str, looks: str) -> bool:
        """Whether a text, alone, has no pattern and ends in no beginning of one: the way that most text goes.

        Args:
            text: as it came.
            looks: its skeleton.
        """
        if self._literals is not None and self._literals.find_matches_as_indexes(looks, overlapping=True):
            return False
        if looks and (longest := self._longest_by_last.get(looks[-1])) is not None:
            for size in range(min(longest, len(looks)), 0, -1):
                if looks[-size:] in self._prefixes:
                    return False
        return self._automaton is None or self._is_quiet_for_regexes(self._automaton, fold(text))

    def candidates(self, folded: str, looks: str, before: str) -> list[Span]:
        """Every place of every pattern, as far as the text up to its end can tell; by end, then start.

        Args:
            folded: the text, folded.
            looks: its skeleton.
            before: the folded character before it; empty at the beginning of the text.
        """
        found: list[Span] = []
        may_differ = has_lookalikes(folded)
        matches = () if self._literals is None else self._literals.find_matches_as_indexes(looks, overlapping=True)
        for number, start, end in matches:
            found.extend(
                Span(end, start, rule)
                for rule in self._by_skeleton[number]
                if self._begins_well(rule, folded, start, before) and self._is_it(rule, folded[start:end], may_differ)
            )
        if self._automaton is not None:
            for start in range(len(folded)):
                for number, end in self._automaton.walk(folded, start)[0]:
                    if not is_mark(folded[start]):
                        found.append(Span(end, start, self._regexes[number]))
        found.sort()
        return found

    def ends_well(self, span: Span, after: str) -> bool:
        """Whether a candidate is a hit, given the folded character after it; empty at the end of the text."""
        if not after:
            return True
        if is_mark(after):
            return False
        return self.rules[span.rule].entry.match is not Match.WORD or not self._cuts_word(span.rule, -1, after)

    def live(self, folded: str, looks: str) -> Live:
        """Where the beginnings of patterns start that the text ends in."""
        size = len(looks)
        starts = {HOLDS: size, ALLOWS: size, WATCHES: size}
        longest = self._longest_by_last.get(looks[-1], 0) if looks else 0
        for start in range(max(0, size - longest), size):
            _note(starts, self._prefixes.get(looks[start:], 0), start)
        if self._automaton is not None:
            for start in range(max(0, size - self._automaton.longest), size):
                for number in self._automaton.walk(folded, start)[1]:
                    _note(starts, self._regex_kinds[number], start)
        return Live(starts[HOLDS], starts[ALLOWS], min(starts.values()))

    def _compile_literals(self) -> AhoCorasick | None:
        numbers: dict[str, int] = {}
        for rule, folded in enumerate(self._folded):
            if self.rules[rule].entry.match is Match.REGEX:
                continue
            looks = skeleton(folded)
            number = numbers.setdefault(looks, len(numbers))
            if number == len(self._by_skeleton):
                self._by_skeleton.append([])
            self._by_skeleton[number].append(rule)
            kind = KINDS[self.rules[rule].level]
            for size in range(1, len(looks)):
                prefix = looks[:size]
                self._prefixes[prefix] = self._prefixes.get(prefix, 0) | kind
                self._longest_by_last[prefix[-1]] = max(size, self._longest_by_last.get(prefix[-1], 0))
        if not numbers:
            return None
        return AhoCorasick(list(numbers), matchkind=MatchKind.Standard, store_patterns=False)

    def _is_it(self, rule: int, folded: str, may_differ: bool) -> bool:
        pattern = self._folded[rule]
        return folded == pattern or ((may_differ or has_lookalikes(pattern)) and is_disguised(folded, pattern))

    def _begins_well(self, rule: int, folded: str, start: int, before: str) -> bool:
        if self.rules[rule].entry.match is not Match.WORD:
            return True
        return not self._cuts_word(rule, 0, folded[start - 1] if start else before)

    def _cuts_word(self, rule: int, edge: int, neighbour: str) -> bool:
        """Whether a word goes on from the pattern's first (0) or last (-1) character to the one beside it."""
        return bool(neighbour) and is_word(neighbour) and is_word(self._folded[rule][edge])

    def _is_quiet_for_regexes(self, automaton: Automaton, folded: str) -> bool:
        return all(automaton.walk(folded, start) == ([], ()) for start in range(len(folded)))


def _note(starts: dict[int, int], kinds: int, start: int) -> None:
    for kind in (HOLDS, ALLOWS, WATCHES):
        if kinds & kind:
            starts[kind] = min(starts[kind], start)
