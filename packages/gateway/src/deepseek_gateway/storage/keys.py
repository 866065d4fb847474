"""The table of API keys."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

from deepseek_gateway.auth.records import KeyRecord, Scope
from deepseek_gateway.limits.rules import Limits
from deepseek_gateway.storage.database import Database, Row, Transaction
from deepseek_gateway.storage.paging import Cursor

KeyState = Literal["active", "disabled", "expired", "revoked"]
KEY_STATES: Final[tuple[KeyState, ...]] = get_args(KeyState)
BATCH: Final = 500
"""Keys that one transaction writes: others get their turn between two."""

_LIMITS = tuple(field.name for field in fields(Limits))
_LISTS = ("models", "cidrs", "tags")
_NAMES = (
    *("public_id", "secret_hash", "name", "scopes", "created", *_LISTS),
    *_LIMITS,
    *("expires", "revoked", "previous_hash", "previous_until", "disabled", "last_used"),
    *("org_id", "team_id", "user_id", "created_by"),
)
_CHANGEABLE = frozenset({"name", "scopes", *_LISTS, *_LIMITS, "expires", "team_id", "user_id"})
_COLUMNS = ", ".join(_NAMES)
_MARKS = ", ".join(f":{name}" for name in _NAMES)
# The statements below hold only these names and fixed texts, never a caller's.
_SELECT = f"""SELECT {", ".join(f"api_keys.{name}" for name in _NAMES)}, CASE WHEN orgs.disabled IS NOT NULL THEN 'org'
    WHEN teams.disabled IS NOT NULL THEN 'team' WHEN users.disabled IS NOT NULL THEN 'user' END
    FROM api_keys LEFT JOIN orgs ON orgs.id = api_keys.org_id LEFT JOIN teams ON teams.id = api_keys.team_id
    LEFT JOIN users ON users.id = api_keys.user_id"""  # noqa: S608
_INSERT = f"INSERT INTO api_keys ({_COLUMNS}) VALUES ({_MARKS})"  # noqa: S608
_TAG = "INSERT INTO key_tags (tag, created, public_id) VALUES (:tag, :created, :public_id)"
_MARK_USED = """UPDATE api_keys SET last_used = :at
    WHERE public_id = :public_id AND (last_used IS NULL OR last_used < :at)"""

_LIVE = "api_keys.revoked IS NULL AND (api_keys.expires IS NULL OR api_keys.expires > :now)"
_OFF = (
    "(api_keys.disabled IS NOT NULL OR orgs.disabled IS NOT NULL OR teams.disabled IS NOT NULL "
    "OR users.disabled IS NOT NULL)"
)
_STATES: Final[dict[KeyState, str]] = {
    "active": f"{_LIVE} AND NOT {_OFF}",
    "disabled": f"{_LIVE} AND {_OFF}",
    "expired": "api_keys.revoked IS NULL AND api_keys.expires <= :now",
    "revoked": "api_keys.revoked IS NOT NULL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFilter:
    """Which keys a list is about: those for which all that is given holds."""

    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    tag: str | None = None
    state: KeyState | None = None
    name: str | None = None
    """Any part of it; small letters or large."""


@dataclass(frozen=True, slots=True)
class KeyTable:
    """API keys by their public id."""

    database: Database

    def insert(self, *records: KeyRecord) -> None:
        """Keep new keys; of many, a batch at a time."""
        for at in range(0, len(records), BATCH):
            batch = records[at : at + BATCH]
            with self.database.transaction() as transaction:
                transaction.write_many(_INSERT, [_values(record) for record in batch])
                transaction.write_many(_TAG, [row for record in batch for row in _tag_rows(record)])

    def find(self, public_id: str) -> KeyRecord | None:
        """The key with a public id, revoked and expired ones too."""
        rows = self.database.read(f"{_SELECT} WHERE api_keys.public_id = :public_id", {"public_id": public_id})
        return _record(rows[0]) if rows else None

    def of_user(self, user_id: str) -> list[str]:
        """Public ids of all keys that a user ever had and has, revoked ones too."""
        rows = self.database.read("SELECT public_id FROM api_keys WHERE user_id = :user_id", {"user_id": user_id})
        return [public_id for (public_id,) in rows]

    def has_any(self) -> bool:
        """Whether there is a key at all."""
        return bool(self.database.read("SELECT 1 FROM api_keys LIMIT 1"))

    def page(
        self, wanted: KeyFilter, now: float, after: Cursor | None, limit: int, *, newest_first: bool = False
    ) -> list[KeyRecord]:
        """The next keys of a list, by when they were made; `now` tells which are expired."""
        # A tag's own index has the order of the list, so the list follows it where a tag is asked for.
        order = "api_keys" if wanted.tag is None else "key_tags"
        sql = _SELECT if wanted.tag is None else f"{_SELECT} JOIN key_tags ON key_tags.public_id = api_keys.public_id"
        owners = ("org_id", "team_id", "user_id")
        conditions = [f"api_keys.{name} = :{name}" for name in owners if getattr(wanted, name) is not None]
        if wanted.tag is not None:
            conditions.append("key_tags.tag = :tag")
        if wanted.state is not None:
            conditions.append(_STATES[wanted.state])
        if wanted.name is not None:
            conditions.append(r"lower(api_keys.name) LIKE :like ESCAPE '\'")
        if after is not None:
            side = "<" if newest_first else ">"
            conditions.append(f"({order}.created, {order}.public_id) {side} (:after_created, :after_id)")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        values = {**asdict(wanted), "now": now, "limit": limit, "like": _pattern(wanted.name or "")}
        if after is not None:
            values |= {"after_created": after.created, "after_id": after.id}
        way = "DESC" if newest_first else "ASC"
        sql = f"{sql} {where} ORDER BY {order}.created {way}, {order}.public_id {way} LIMIT :limit"
        # A name or a state that few have is looked for among all keys, while look-ups of keys go on.
        return [_record(row) for row in self.database.report(sql, values)]

    def change(self, public_id: str, changes: Mapping[str, Any]) -> KeyRecord | None:
        """Set fields of a key; `limits` replaces all limits. None: no such key, or it is revoked."""
        columns = _columns(changes)
        assert columns.keys() <= _CHANGEABLE, columns.keys() - _CHANGEABLE
        with self.database.transaction() as transaction:
            settings = ", ".join(f"{name} = :{name}" for name in columns) or "name = name"
            sql = f"UPDATE api_keys SET {settings} WHERE public_id = :public_id AND revoked IS NULL"  # noqa: S608
            if not transaction.write(sql, {**columns, "public_id": public_id}):
                return None
            record = _found(transaction, public_id)
            if "tags" in changes:
                transaction.write("DELETE FROM key_tags WHERE public_id = :public_id", {"public_id": public_id})
                transaction.write_many(_TAG, _tag_rows(record))
        return record

    def rotate(self, public_id: str, secret_hash: str, previous_until: float) -> KeyRecord | None:
        """Replace a key's hash and keep the old one until a Unix time. None: no such key, or it is revoked."""
        changed = self.database.write(
            "UPDATE api_keys SET previous_hash = secret_hash, previous_until = :until, secret_hash = :secret_hash "
            "WHERE public_id = :public_id AND revoked IS NULL",
            {"until": previous_until, "secret_hash": secret_hash, "public_id": public_id},
        )
        return self.find(public_id) if changed else None

    def set_disabled(self, public_id: str, at: float | None) -> KeyRecord | None:
        """Disable a key, the first time stands; or enable it again. None: no such key, or it is revoked."""
        value = "NULL" if at is None else "coalesce(disabled, :at)"
        sql = f"UPDATE api_keys SET disabled = {value} WHERE public_id = :public_id AND revoked IS NULL"  # noqa: S608
        return self.find(public_id) if self.database.write(sql, {"at": at, "public_id": public_id}) else None

    def revoke(self, public_id: str, at: float) -> KeyRecord | None:
        """Mark a key revoked; the first time stands. None: no such key."""
        sql = "UPDATE api_keys SET revoked = coalesce(revoked, :at) WHERE public_id = :public_id"
        self.database.write(sql, {"at": at, "public_id": public_id})
        return self.find(public_id)

    def delete_unused(self, public_id: str) -> bool:
        """Delete a key that never did anything; False when it did, or is not there."""
        values = {"public_id": public_id}
        is_used = """SELECT 1 FROM api_keys WHERE public_id = :public_id AND last_used IS NOT NULL
            UNION ALL SELECT 1 FROM ledger WHERE key_id = :public_id LIMIT 1"""
        with self.database.transaction() as transaction:
            if transaction.read(is_used, values):
                return False
            transaction.write("DELETE FROM key_tags WHERE public_id = :public_id", values)
            return bool(transaction.write("DELETE FROM api_keys WHERE public_id = :public_id", values))

    def mark_used(self, used: Mapping[str, float]) -> None:
        """Note when keys were last used; an earlier time than the one that is there changes nothing."""
        # Sorted: two gateways that lock the same rows in the same order cannot wait for each other.
        rows = [{"public_id": public_id, "at": at} for public_id, at in sorted(used.items())]
        for at in range(0, len(rows), BATCH):
            with self.database.transaction() as transaction:
                transaction.write_many(_MARK_USED, rows[at : at + BATCH])


def _found(transaction: Transaction, public_id: str) -> KeyRecord:
    return _record(transaction.read(f"{_SELECT} WHERE api_keys.public_id = :public_id", {"public_id": public_id})[0])


def _tag_rows(record: KeyRecord) -> Sequence[dict[str, object]]:
    return [{"tag": tag, "created": record.created, "public_id": record.public_id} for tag in record.tags]


def _columns(values: Mapping[str, Any]) -> dict[str, object]:
    """Fields of a record as the table has them."""
    columns: dict[str, Any] = dict(values)
    if "limits" in columns:
        limits = columns.pop("limits")
        columns |= {name: getattr(limits, name) for name in _LIMITS}
    if "scopes" in columns:
        columns["scopes"] = json.dumps(sorted(columns["scopes"]))
    columns.update({name: _json(columns[name]) for name in _LISTS if name in columns})
    return columns


def _json(items: Sequence[str] | None) -> str | None:
    return None if items is None else json.dumps(items)


def _pattern(part: str) -> str:
    """What LIKE takes for texts that hold this one."""
    literal = re.sub(r"([%_\\])", r"\\\1", part.lower())
    return f"%{literal}%"


def _values(record: KeyRecord) -> dict[str, object]:
    names = [field.name for field in fields(record) if field.name != "owner_disabled"]
    return _columns({name: getattr(record, name) for name in names})


def _record(row: Row) -> KeyRecord:
    values: dict[str, Any] = dict(zip((*_NAMES, "owner_disabled"), row, strict=True))
    limits = Limits(**{name: values.pop(name) for name in _LIMITS})
    scopes = frozenset(Scope(name) for name in json.loads(values.pop("scopes")))
    for name in _LISTS:
        values[name] = None if values[name] is None else tuple(json.loads(values[name]))
    return KeyRecord(**values, scopes=scopes, limits=limits)
