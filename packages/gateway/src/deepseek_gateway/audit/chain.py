"""The chain: each entry holds the hash of the one before it, so that no past entry can be changed unseen.

An entry's hash is SHA-256 over a JSON array of its fields, compact and in UTF-8, as
`json.dumps([sequence, at, actor, action, subject, before, after, request_id, policy_version, list_version,
previous_hash], separators=(",", ":"), ensure_ascii=False)` writes it: an export can be checked without this program.
A seal is an HMAC of a head under a key made from the pepper: who can write the store but has no pepper cannot make the
seal of a rewritten chain.
"""

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

import orjson

GENESIS = "0" * 64
"""What the first entry has for a previous hash."""

MAX_VALUE_BYTES = 64 * 1024
"""Longest `before` or `after`; of a longer one only its size and digest are kept."""

Kind = Literal["changed", "removed", "inserted", "cut", "rewritten", "unsealed"]


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry before it has its place. `before` and `after` are JSON texts without secrets."""

    actor: str
    action: str
    subject: str
    before: str | None = None
    after: str | None = None
    request_id: str | None = None
    policy_version: str = ""
    list_version: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the log, in the order of its columns; `at` is Unix time."""

    sequence: int
    at: float
    actor: str
    action: str
    subject: str
    before: str | None
    after: str | None
    request_id: str | None
    policy_version: str
    list_version: str
    previous_hash: str
    hash: str

    def computed_hash(self) -> str:
        """The hash that the fields have now."""
        return hashlib.sha256(orjson.dumps(astuple(self)[:-1])).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """For listings and exports: `before` and `after` as they are stored, so that the hash can be computed."""
        return {name: getattr(self, name) for name in Entry.__slots__}


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry's place and hash; `seal` is empty where no pepper was at hand."""

    sequence: int = 0
    hash: str = GENESIS
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place where the log is not what was written."""

    sequence: int
    kind: Kind
    message: str


def link(head: Head, at: float, drafts: Sequence[Draft]) -> list[Entry]:
    """Entries for drafts, after a head."""
    entries: list[Entry] = []
    sequence, previous = head.sequence, head.hash
    for draft in drafts:
        sequence += 1
        entry = Entry(sequence, round(at, 6), *astuple(draft), previous_hash=previous, hash="")
        entry = replace(entry, hash=entry.computed_hash())
        entries.append(entry)
        previous = entry.hash
    return entries


def seal_key(pepper: bytes) -> bytes:
    """The key of seals: made from the pepper, useless for anything else."""
    return hmac.new(pepper, b"deepseek-gateway audit seal", hashlib.sha256).digest()


def seal(key: bytes, sequence: int, entry_hash: str) -> str:
    """The seal of a head."""
    return hmac.new(key, f"{sequence}:{entry_hash}".encode(), hashlib.sha256).hexdigest()


def is_sealed(key: bytes, head: Head) -> bool:
    """Whether a head's seal was made with this key. A log without entries needs none."""
    return head.sequence == 0 or hmac.compare_digest(seal(key, head.sequence, head.hash), head.seal)


def json_text(value: object) -> str | None:
    """The form in which `before` and `after` are kept."""
    if value is None:
        return None
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    if len(text) > MAX_VALUE_BYTES:
        text = orjson.dumps({"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest(), "too_long": True})
    return text.decode()


class Verifier:
    """Walks a chain and stops at the first fault.

    Args:
        head: where the store says that the chain ends; None where that is not known (an export).
        known: heads that were kept elsewhere, sequence to hash.
    """

    def __init__(self, head: Head | None = None, known: dict[int, str] | None = None) -> None:
        self._head = head
        self._known = known or {}
        self.count = 0

    def first_fault(self, entries: Iterable[Entry]) -> Fault | None:
        """The first fault, or None; `entries` are in order."""
        last: Entry | None = None
        before_last = GENESIS
        for entry in entries:
            previous = GENESIS if last is None else last.hash
            expected = 1 if last is None else last.sequence + 1
            fault = self._fault_of(entry, expected, previous, before_last)
            if fault is not None:
                return fault
            before_last, last = previous, entry
            self.count += 1
        return self._fault_of_end(last)

    def _fault_of(self, entry: Entry, expected: int, previous: str, before_last: str) -> Fault | None:
        at = entry.sequence
        if entry.computed_hash() != entry.hash:
            return self._fault_of_hash(entry)
        if at != expected:
            return Fault(expected, "removed", f"entry {_range(expected, at - 1)} is gone: after it comes entry {at}")
        if entry.previous_hash != previous:
            if at > 1 and entry.previous_hash == before_last:
                return Fault(at - 1, "inserted", f"entry {at - 1} was inserted: entry {at} follows the one before it")
            return Fault(at, "rewritten", f"entry {at} does not follow entry {at - 1}: one of the two was rewritten")
        if self._known.get(at, entry.hash) != entry.hash:
            return Fault(at, "rewritten", f"entry {at} has another hash than the head that was kept elsewhere")
        if self._head is not None and at > self._head.sequence:
            return Fault(at, "inserted", f"entry {at} was inserted after the head, which is {self._head.sequence}")
        return None

    def _fault_of_hash(self, entry: Entry) -> Fault:
        at = entry.sequence
        for moved in (1, -1, 2, -2):
            if replace(entry, sequence=at + moved).computed_hash() == entry.hash:
                if moved > 0:
                    return Fault(at, "removed", f"entry {at} was entry {at + moved}: what came before it was removed")
                return Fault(at, "inserted", f"entry {at} was entry {at + moved}: something was inserted before it")
        return Fault(at, "changed", f"entry {at} ({entry.action} {entry.subject}) was changed: its hash does not fit")

    def _fault_of_end(self, last: Entry | None) -> Fault | None:
        sequence, last_hash = (0, GENESIS) if last is None else (last.sequence, last.hash)
        ends = [*self._known, *([] if self._head is None else [self._head.sequence])]
        if ends and max(ends) > sequence:
            cut = _range(sequence + 1, max(ends))
            return Fault(sequence + 1, "cut", f"the end was cut off: entry {cut} is gone")
        if self._head is not None and self._head.hash != last_hash:
            return Fault(sequence, "rewritten", f"the last entry, {sequence}, is not the one that the head names")
        return None


def known_heads(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Sequence and hash in lines as `audit head` prints them.

    Raises:
        ValueError: a line is none.
    """
    for line in lines:
        if line.strip():
            head = orjson.loads(line)
            yield int(head["sequence"]), str(head["hash"])


def _range(first: int, last: int) -> str:
    return str(first) if first >= last else f"{first} to {last}"
