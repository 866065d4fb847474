"""Which rules count for a request: an immutable snapshot of lists and policies, compiled where first needed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepseek_gateway.guard.entries import Direction, Entry, Level, Match, Rule, WordListError
from deepseek_gateway.guard.matcher import Matcher

Scope = tuple[str, str]
Wish = tuple[str, str]
"""What a policy says of a list: its level (`listed`, `block`, `mask`, `review`, `off`), and `closed` or `open`."""

Effective = tuple[tuple[str, Wish], ...]

DEFAULT: Wish = ("listed", "closed")
ALL: Scope = ("all", "")
NO_LISTS_VERSION = "none"
"""The version of no list at all."""

MAX_COMPILED = 64
"""Different policies that are kept compiled: more than these take turns."""


MAX_NAMED = 4
"""Lists that a version names; the others are counted."""


@dataclass(frozen=True, slots=True)
class LoadedList:
    """The version of a list that is in force."""

    name: str
    version: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one kind of request.

    Attributes:
        version: names the lists and their versions, with a digest of what they do and of the entries that count by
            date: it goes into the audit log.
        inward: for requests; None when no rule is for them.
        outward: for answers.
        fails_open: text passes when the filter itself fails.
        missing: lists that should count, and cannot: their requests are refused.
    """

    version: str
    inward: Matcher | None
    outward: Matcher | None
    fails_open: bool
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the store said at one moment.

    Args:
        lists: active lists by name.
        wishes: what is said for each scope.
        broken: active lists that could not be loaded, and have no older version in memory.
        now: Unix time: entries count that are valid then.
    """

    lists: Mapping[str, LoadedList]
    wishes: Mapping[Scope, Mapping[str, Wish]]
    broken: frozenset[str]
    now: float

    def effective(self, key_id: str, org_id: str | None, model: str | None) -> Effective:
        """What each list does for a request: the key's word over the model's, that over the organisation's."""
        names = [*self.lists, *self.broken]
        if not names:
            return ()
        said = dict.fromkeys(names, DEFAULT)
        for scope in (ALL, ("org", org_id or ""), ("model", model or ""), ("key", key_id)):
            said.update((name, wish) for name, wish in self.wishes.get(scope, {}).items() if name in said)
        return tuple(sorted((name, wish) for name, wish in said.items() if wish[0] != "off"))

    def compile(self, effective: Effective) -> Policy:
        """The matchers of a policy. Takes a tenth of a second for 20,000 words: call it in a thread.

        Raises:
            WordListError: an entry cannot be used.
        """
        rules: list[Rule] = []
        digest = hashlib.sha256()
        for name, (level, on_failure) in effective:
            if name not in self.lists:
                continue
            loaded = self.lists[name]
            digest.update(f"{name}@{loaded.version}={level},{on_failure}\n".encode())
            for number, entry in enumerate(loaded.entries, 1):
                if entry.is_valid_at(self.now):
                    if entry.valid_from is not None or entry.valid_until is not None:
                        digest.update(f"{number}\n".encode())
                    entry.check()
                    rules.append(Rule(f"{name}@{loaded.version}#{number}", entry, _level(entry, level)))
        missing = tuple(name for name, (_, fails) in effective if name in self.broken and fails == "closed")
        inward = [rule for rule in rules if rule.entry.direction is not Direction.OUT]
        outward = [rule for rule in rules if rule.entry.direction is not Direction.IN]
        matcher = _matcher(inward)
        loaded_lists = [self.lists[name] for name, _ in effective if name in self.lists]
        return Policy(
            version=f"{_names(loaded_lists)}#{digest.hexdigest()[:12]}",
            inward=matcher,
            outward=matcher if inward == outward else _matcher(outward),
            fails_open=all(fails == "open" for _, (_, fails) in effective),
            missing=missing,
        )

    def next_change(self) -> float | None:
        """The next Unix time at which an entry begins or ceases to count."""
        moments = (
            moment
            for loaded in self.lists.values()
            for entry in loaded.entries
            for moment in (entry.valid_from, entry.valid_until)
            if moment is not None and moment > self.now
        )
        return min(moments, default=None)


def rule_place(rule_id: str) -> tuple[str, int, int]:
    """The list, version and entry number in a rule's id.

    Raises:
        WordListError: it is no such id.
    """
    name, _, place = rule_id.rpartition("@")
    version, _, number = place.partition("#")
    if not name or not version.isdigit() or not number.isdigit():
        raise WordListError(f"{rule_id!r} is no rule's id: they are list@version#number")
    return name, int(version), int(number)


def _names(lists: Sequence[LoadedList]) -> str:
    shown = [f"{loaded.name}@{loaded.version}" for loaded in lists[:MAX_NAMED]]
    return ",".join(shown) + (f",+{len(lists) - MAX_NAMED}" if len(lists) > MAX_NAMED else "")


def _level(entry: Entry, wished: str) -> Level:
    keeps = entry.level is Level.ALLOW or entry.match is Match.SPACED  # a coincidence must not block
    return entry.level if wished == "listed" or keeps else Level(wished)


def _matcher(rules: Sequence[Rule]) -> Matcher | None:
    return Matcher(rules) if any(rule.level is not Level.ALLOW for rule in rules) else None
