"""Find the patterns of a policy in folded text, and say which beginnings of patterns a text ends in.

Literals are found by one Aho-Corasick automaton (ahocorasick_rs; other threads run meanwhile), expressions by one of
ours. Everything is compiled once and never changed: threads may share a matcher.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ahocorasick_rs import AhoCorasick, MatchKind

from deepseek_gateway.guard.entries import Level, Match, Rule
from deepseek_gateway.guard.fold import fold, has_lookalikes, is_disguised, is_mark, is_word, skeleton
from deepseek_gateway.guard.regex import Automaton, parse
from deepseek_gateway.guard.spaced import SpacedPatterns

HOLDS, ALLOWS, WATCHES = 1, 2, 4
"""What a live beginning is for: text must wait, a hit may be cancelled, a person may want to see it."""

_ASCII_STARTS = re.compile("(?<![a-z0-9_])[ -~]")  # folded text has no capitals

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


class _Prefixes:
    """Proper beginnings of literals, with what they are for, and the longest by its last character."""

    def __init__(self) -> None:
        self.kinds: dict[str, int] = {}
        self.longest_by_last: dict[str, int] = {}

    def add(self, literal: str, kind: int) -> None:
        kinds, longest = self.kinds, self.longest_by_last
        for size in range(1, len(literal)):
            prefix = literal[:size]
            kinds[prefix] = kinds.get(prefix, 0) | kind
            if longest.get(prefix[-1], 0) < size:
                longest[prefix[-1]] = size


class Matcher:
    """The rules of one policy in one direction."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._folded = [fold(rule.entry.pattern) for rule in rules]
        self._by_skeleton: list[list[int]] = []
        self._anywhere = _Prefixes()
        self._at_words = _Prefixes()
        self._literals = self._compile_literals()
        self.spaced = SpacedPatterns.of(rules)
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

    def has_any(self, looks: str) -> bool:
        """Whether a skeleton may have a pattern in it. Regular expressions always may."""
        if self._automaton is not None:
            return True
        return self._literals is not None and bool(self._literals.find_matches_as_indexes(looks, overlapping=True))

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

    def live(self, text: str, looks: str, before: str) -> Live:
        """Where the beginnings of patterns start that a text ends in.

        Args:
            text: as it came.
            looks: its skeleton.
            before: the folded character before it; empty at the beginning.
        """
        size = len(looks)
        holds = allows = watches = size
        for start, kinds in self._beginnings(looks, before):
            holds = min(holds, start) if kinds & HOLDS else holds
            allows = min(allows, start) if kinds & ALLOWS else allows
            watches = min(watches, start) if kinds & WATCHES else watches
        if self._automaton is not None:
            folded = fold(text)
            for start in range(max(0, size - self._automaton.longest), size):
                for number in self._automaton.walk(folded, start)[1]:
                    kind = self._regex_kinds[number]
                    holds = min(holds, start) if kind == HOLDS else holds
                    allows = min(allows, start) if kind == ALLOWS else allows
                    watches = min(watches, start) if kind == WATCHES else watches
        return Live(holds, allows, min(holds, allows, watches))

    def _beginnings(self, looks: str, before: str) -> list[tuple[int, int]]:
        """Places where a literal's beginning starts that the text ends in, with the kinds of these literals."""
        if not looks:
            return []
        size, found = len(looks), list[tuple[int, int]]()
        if longest := self._anywhere.longest_by_last.get(looks[-1]):
            prefixes = self._anywhere.kinds
            for start in range(max(0, size - longest), size):
                if (kinds := prefixes.get(looks[start:])) is not None:
                    found.append((start, kinds))
        if longest := self._at_words.longest_by_last.get(looks[-1]):
            prefixes = self._at_words.kinds
            for start in _word_starts(looks, max(0, size - longest), before):
                if (kinds := prefixes.get(looks[start:])) is not None:
                    found.append((start, kinds))
        return found

    def _compile_literals(self) -> AhoCorasick | None:
        numbers: dict[str, int] = {}
        for rule, folded in enumerate(self._folded):
            if self.rules[rule].entry.match in {Match.REGEX, Match.SPACED}:
                continue
            looks = skeleton(folded)
            number = numbers.setdefault(looks, len(numbers))
            if number == len(self._by_skeleton):
                self._by_skeleton.append([])
            self._by_skeleton[number].append(rule)
            begins_word = self.rules[rule].entry.match is Match.WORD and is_word(looks[0])
            prefixes = self._at_words if begins_word else self._anywhere
            prefixes.add(looks, KINDS[self.rules[rule].level])
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


def _word_starts(looks: str, first: int, before: str) -> Iterator[int]:
    """Places from `first` on that no word's character comes before."""
    if looks.isascii():
        for match in _ASCII_STARTS.finditer(looks, first):
            if match.start() or not before or not is_word(before):
                yield match.start()
        return
    neighbour = looks[first - 1] if first else before
    for start in range(first, len(looks)):
        if not neighbour or not is_word(neighbour):
            yield start
        neighbour = looks[start]
