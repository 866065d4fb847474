"""Words that hide between other characters: `b a d`, `b-a-d`, `b4ad`, `坏*词`. A second look, for review only.

It sees the text that was sent on, so it holds nothing back; what it finds is queued for a person. Of the text only
letters count, each with what stood before it; patterns are made of theirs. Since words of ordinary text run together
so, three rules keep coincidences out: at most `MAX_GAP` characters stand between two letters; words of scripts that
have words begin and end at the edges of words; and there a space counts only where every letter stands alone.
"""

from collections.abc import Sequence

from ahocorasick_rs import AhoCorasick, MatchKind

from deepseek_gateway.guard.entries import Level, Match, Rule
from deepseek_gateway.guard.fold import fold, is_mark, is_word
from deepseek_gateway.guard.hits import MAX_HITS, Hit

MAX_GAP = 3
"""Characters between two letters of a word, at most."""

MAX_SPREAD = 64
"""The same with all that shows nothing and all marks, of which there may be any number."""

_TOO_FAR = " " * (MAX_GAP + 1)


class SpacedPatterns:
    """The `spaced` entries of a policy, and the phrases that allow them, by their letters."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = [
            rule
            for rule in rules
            if rule.entry.match is Match.SPACED
            or (rule.level is Level.ALLOW and rule.entry.match is not Match.REGEX and letters_of(rule.entry.pattern))
        ]
        patterns = [letters_of(rule.entry.pattern) for rule in self.rules]
        self.longest = max(map(len, patterns))
        self._automaton = AhoCorasick(patterns, matchkind=MatchKind.Standard, store_patterns=False)

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> "SpacedPatterns | None":
        """None where no entry asks for the second look."""
        wanted = any(rule.entry.match is Match.SPACED and rule.level is not Level.ALLOW for rule in rules)
        return cls(rules) if wanted else None

    def find(self, letters: str) -> list[tuple[int, int, int]]:
        """Rule, first letter and end of everything that these letters spell."""
        return self._automaton.find_matches_as_indexes(letters, overlapping=True)


class SpacedText:
    """One text, as it is sent on. Hits come when the letters after them can make no phrase that allows them."""

    def __init__(self, patterns: SpacedPatterns, hits: list[Hit]) -> None:
        self._patterns = patterns
        self._hits = hits
        self._num_hits = 0
        self._text = ""  # from the first letter that is still looked at
        self._base = 0
        self._letters: list[str] = []
        self._at: list[int] = []  # where each letter stands in the whole text
        self._gaps: list[str] = []  # what stood before it, after the letter before
        self._gap = " "  # as at the beginning of a text
        self._decided = 0  # letters whose hits, by their last letter, are told

    @property
    def is_open(self) -> bool:
        """Whether letters wait for those after them."""
        return self._decided < len(self._letters)

    def feed(self, text: str) -> None:
        """Take what was sent on."""
        at = self._base + len(self._text)
        self._text += text
        for position, char in enumerate(text, at):
            for folded in fold(char):
                if is_mark(folded):
                    continue
                if folded.isalpha():
                    self._add(folded, position)
                elif len(self._gap) <= MAX_GAP:
                    self._gap += folded
        end = self._base + len(self._text)
        if self._letters and (len(self._gap) > MAX_GAP or end - self._at[-1] > MAX_SPREAD):
            self._gap = _TOO_FAR
            self._decide(len(self._letters))  # no word and no phrase goes on
            self._forget(len(self._letters))
        # The letter after a hit says whether its word ends there; `longest` more, whether a phrase allows it.
        elif len(self._letters) - self._decided > 2 * self._patterns.longest:
            self._decide(len(self._letters) - self._patterns.longest)
        if not self._letters:
            self._text, self._base = "", end

    def _add(self, letter: str, position: int) -> None:
        if self._at and position - self._at[-1] > MAX_SPREAD:
            self._gap = _TOO_FAR
        self._letters.append(letter)
        self._at.append(position)
        self._gaps.append(self._gap)
        self._gap = ""

    def finish(self) -> None:
        """The text ends here, or goes on after something else."""
        self._gap = self._gap or " "
        self._decide(len(self._letters))
        self._forget(len(self._letters))
        self._gap = " "

    def _decide(self, end: int) -> None:
        """Tell of hits whose last letter is before `end`."""
        rules, letters = self._patterns.rules, "".join(self._letters)
        found = [match for match in self._patterns.find(letters) if self._is_one(*match)]
        allowed = [(first, last) for rule, first, last in found if rules[rule].level is Level.ALLOW]
        for rule, first, last in found:
            is_new = self._decided < last <= end and rules[rule].level is not Level.ALLOW
            if is_new and not any(start <= first and last <= stop for start, stop in allowed):
                self._tell(rules[rule], first, last)
        self._decided = end
        self._forget(max(0, end - self._patterns.longest))

    def _is_one(self, rule: int, first: int, last: int) -> bool:
        """Whether letters that spell a word are more than a coincidence."""
        inner = self._gaps[first + 1 : last]
        if any(len(gap) > MAX_GAP for gap in inner):
            return False
        if self._patterns.rules[rule].level is Level.ALLOW or not is_word(self._letters[first]):
            return True
        after = self._gaps[last] if last < len(self._gaps) else self._gap
        if not self._gaps[first] or not after:
            return False
        return all(inner) or not any(" " in gap for gap in inner)

    def _tell(self, rule: Rule, first: int, last: int) -> None:
        if self._num_hits >= MAX_HITS:
            return
        self._num_hits += 1
        start, end = self._at[first], self._at[last - 1] + 1
        text = self._text[start - self._base : end - self._base]
        self._hits.append(Hit(rule, start, end, text, "".join(self._letters[first:last])))

    def _forget(self, number: int) -> None:
        """Look no more at so many letters."""
        del self._letters[:number], self._gaps[:number]
        if number:
            keep = self._at[number] if number < len(self._at) else self._base + len(self._text)
            self._text, self._base = self._text[keep - self._base :], keep
        del self._at[:number]
        self._decided -= number


def letters_of(pattern: str) -> str:
    """What is left of a pattern: its letters."""
    return "".join(char for char in fold(pattern) if char.isalpha() and not is_mark(char))
