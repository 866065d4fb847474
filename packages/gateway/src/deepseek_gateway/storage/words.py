"""Tables of word lists, their policies, and the review queue."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from deepseek_gateway.errors import StoreConflictError
from deepseek_gateway.guard.entries import Direction, Entry, Level, Match
from deepseek_gateway.storage.database import Database, Row, Transaction

_ENTRY_NAMES = (
    *("pattern", "level", "category", "direction", "match", "language", "valid_from", "valid_until", "source"),
)
_ENTRIES = ", ".join(_ENTRY_NAMES)
_REVIEW_NAMES = (
    *("id", "created", "request_id", "key_id", "model", "direction", "field", "choice", "rule", "category", "level"),
    *("hit_start", "hit_end", "hit_hmac", "state", "decided", "decided_by", "note"),
)
_REVIEWS = ", ".join(_REVIEW_NAMES)
# The statements below hold only these names, never a caller's text.
_INSERT_ENTRY: Final = f"""INSERT INTO word_entries (list, version, number, {_ENTRIES})
    VALUES (:list, :version, :number, {", ".join(f":{name}" for name in _ENTRY_NAMES)})"""  # noqa: S608
_INSERT_REVIEW: Final = f"""INSERT INTO word_reviews ({_REVIEWS})
    VALUES ({", ".join(f":{name}" for name in _REVIEW_NAMES)}) ON CONFLICT (id) DO NOTHING"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class ListRow:
    """A list; `active_version` is None while it is off."""

    name: str
    active_version: int | None
    created: float


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a list."""

    list: str
    version: int
    entries: int
    sha256: str
    note: str
    created: float
    created_by: str


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """What a list does for a scope: everybody (`all`), an organisation, a model, a key."""

    scope: str
    scope_id: str
    list: str
    level: str
    on_failure: str


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """A hit in the review queue."""

    id: str
    created: float
    request_id: str
    key_id: str
    model: str | None
    direction: str
    field: str
    choice: int
    rule: str
    category: str
    level: str
    hit_start: int
    hit_end: int
    hit_hmac: str
    state: str = "new"
    decided: float | None = None
    decided_by: str | None = None
    note: str = ""


def digest_of(entries: Sequence[Entry]) -> str:
    """SHA-256 of a version's content."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps(list(asdict(entry).values()), ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class WordTables:
    """See the module."""

    database: Database

    def stamp(self) -> int:
        """Goes up with every change of lists and policies."""
        return int(self.database.read("SELECT stamp FROM word_state WHERE id = 1")[0][0])

    def add_version(self, name: str, entries: Sequence[Entry], *, note: str, by: str, now: float) -> VersionRow:
        """Keep a new version of a list, which is made if it is new."""
        row_of = {"name": name, "now": now}
        with self.database.transaction() as transaction:
            transaction.lock("words")
            sql = "INSERT INTO word_lists (name, created) VALUES (:name, :now) ON CONFLICT (name) DO NOTHING"
            transaction.write(sql, row_of)
            last = transaction.read("SELECT max(version) FROM word_versions WHERE list = :name", {"name": name})
            version = VersionRow(name, int(last[0][0] or 0) + 1, len(entries), digest_of(entries), note, now, by)
            transaction.write(
                """INSERT INTO word_versions (list, version, entries, sha256, note, created, created_by)
                VALUES (:list, :version, :entries, :sha256, :note, :created, :created_by)""",
                asdict(version),
            )
            common = {"list": name, "version": version.version}
            rows = [{**common, "number": number, **asdict(entry)} for number, entry in enumerate(entries, 1)]
            transaction.write_many(_INSERT_ENTRY, rows)
        return version

    def activate(self, name: str, version: int | None) -> bool:
        """Put a version in force, or none; False when there is no such version."""
        with self.database.transaction() as transaction:
            known = transaction.read(
                "SELECT 1 FROM word_versions WHERE list = :list AND (version = :version OR :any = 1)",
                {"list": name, "version": version or 0, "any": int(version is None)},
            )
            if not known:
                return False
            transaction.write(
                "UPDATE word_lists SET active_version = :version WHERE name = :name", {"name": name, "version": version}
            )
            _touch(transaction)
        return True

    def lists(self) -> list[ListRow]:
        """All lists, by name."""
        rows = self.database.read("SELECT name, active_version, created FROM word_lists ORDER BY name")
        return [ListRow(*row) for row in rows]

    def versions(self, name: str) -> list[VersionRow]:
        """Versions of a list, the newest first."""
        sql = """SELECT list, version, entries, sha256, note, created, created_by FROM word_versions
            WHERE list = :list ORDER BY version DESC"""
        return [VersionRow(*row) for row in self.database.read(sql, {"list": name})]

    def entries(self, name: str, version: int) -> list[Entry]:
        """Entries of a version, in order: the first has the number 1."""
        sql = f"SELECT {_ENTRIES} FROM word_entries WHERE list = :list AND version = :version ORDER BY number"  # noqa: S608
        return [_entry(row) for row in self.database.read(sql, {"list": name, "version": version})]

    def policies(self) -> list[PolicyRow]:
        """All policies."""
        sql = "SELECT scope, scope_id, list, level, on_failure FROM word_policies ORDER BY list, scope, scope_id"
        return [PolicyRow(*row) for row in self.database.read(sql)]

    def set_policy(self, policy: PolicyRow) -> None:
        """Say what a list does for a scope, instead of what was said before.

        Raises:
            StoreConflictError: there is no such list.
        """
        with self.database.transaction() as transaction:
            if not transaction.read("SELECT 1 FROM word_lists WHERE name = :name", {"name": policy.list}):
                raise StoreConflictError(f"there is no word list {policy.list!r}")
            transaction.write(
                """INSERT INTO word_policies (scope, scope_id, list, level, on_failure)
                VALUES (:scope, :scope_id, :list, :level, :on_failure)
                ON CONFLICT (scope, scope_id, list)
                DO UPDATE SET level = excluded.level, on_failure = excluded.on_failure""",
                asdict(policy),
            )
            _touch(transaction)

    def drop_policy(self, scope: str, scope_id: str, name: str) -> bool:
        """Say nothing about a list for a scope; False when nothing was said."""
        with self.database.transaction() as transaction:
            sql = "DELETE FROM word_policies WHERE scope = :scope AND scope_id = :scope_id AND list = :list"
            if not transaction.write(sql, {"scope": scope, "scope_id": scope_id, "list": name}):
                return False
            _touch(transaction)
        return True

    def add_reviews(self, rows: Sequence[ReviewRow]) -> None:
        """Queue hits; one that is there stays as it is."""
        with self.database.transaction() as transaction:
            transaction.write_many(_INSERT_REVIEW, [asdict(row) for row in rows])

    def reviews(self, state: str | None, limit: int, before: tuple[float, str] | None = None) -> list[ReviewRow]:
        """Hits in a state or all, the newest first; `before` is (created, id) of the last one seen."""
        at, last = before or (0.0, "")
        sql = f"""SELECT {_REVIEWS} FROM word_reviews WHERE (:state = '' OR state = :state)
            AND (:first = 1 OR created < :at OR (created = :at AND id < :last))
            ORDER BY created DESC, id DESC LIMIT :limit"""  # noqa: S608
        values = {"state": state or "", "first": int(before is None), "at": at, "last": last, "limit": limit}
        return [ReviewRow(*row) for row in self.database.read(sql, values)]

    def review(self, review_id: str) -> ReviewRow | None:
        """One hit."""
        sql = f"SELECT {_REVIEWS} FROM word_reviews WHERE id = :id"  # noqa: S608
        rows = self.database.read(sql, {"id": review_id})
        return ReviewRow(*rows[0]) if rows else None

    def count_reviews(self) -> dict[str, int]:
        """How many hits are in each state."""
        rows = self.database.read("SELECT state, count(*) FROM word_reviews GROUP BY state")
        return {state: int(count) for state, count in rows}

    def decide(self, review_id: str, state: str, *, by: str, note: str, now: float) -> bool:
        """Confirm or dismiss a hit; False when there is none."""
        sql = """UPDATE word_reviews SET state = :state, decided = :now, decided_by = :by, note = :note
            WHERE id = :id"""
        return bool(self.database.write(sql, {"id": review_id, "state": state, "now": now, "by": by, "note": note}))

    def drop_reviews(self, before: float) -> int:
        """Forget hits created before a Unix time; gives how many."""
        return self.database.write("DELETE FROM word_reviews WHERE created < :before", {"before": before})


def _entry(row: Row) -> Entry:
    pattern, level, category, direction, match, language, valid_from, valid_until, source = row
    return Entry(
        pattern, Level(level), category, Direction(direction), Match(match), language, valid_from, valid_until, source
    )


def _touch(transaction: Transaction) -> None:
    transaction.write("UPDATE word_state SET stamp = stamp + 1 WHERE id = 1")
