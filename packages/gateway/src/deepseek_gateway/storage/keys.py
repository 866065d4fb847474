"""The table of API keys."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from deepseek_gateway.auth.records import KeyRecord, Scope
from deepseek_gateway.limits.rules import Limits
from deepseek_gateway.storage.database import Database, Row

_LIMITS = tuple(field.name for field in fields(Limits))
_NAMES = (
    *("public_id", "secret_hash", "name", "scope", "created", "models"),
    *_LIMITS,
    *("expires", "revoked", "previous_hash", "previous_until"),
)
_COLUMNS = ", ".join(_NAMES)
_MARKS = ", ".join(f":{name}" for name in _NAMES)
# The statements below hold only these names, never a caller's text.
_SELECT = f"SELECT {_COLUMNS} FROM api_keys"  # noqa: S608
_INSERT = f"INSERT INTO api_keys ({_COLUMNS}) VALUES ({_MARKS})"  # noqa: S608


@dataclass(frozen=True, slots=True)
class KeyTable:
    """API keys by their public id."""

    database: Database

    def insert(self, record: KeyRecord) -> None:
        """Keep a new key."""
        self.database.write(_INSERT, _values(record))

    def find(self, public_id: str) -> KeyRecord | None:
        """The key with a public id, revoked and expired ones too."""
        rows = self.database.read(f"{_SELECT} WHERE public_id = :public_id", {"public_id": public_id})
        return _record(rows[0]) if rows else None

    def list(self) -> list[KeyRecord]:
        """All keys, the oldest first."""
        return [_record(row) for row in self.database.read(f"{_SELECT} ORDER BY created, public_id")]

    def rotate(self, public_id: str, secret_hash: str, previous_until: float) -> KeyRecord | None:
        """Replace a key's hash and keep the old one until a Unix time. None: no such key, or it is revoked."""
        changed = self.database.write(
            "UPDATE api_keys SET previous_hash = secret_hash, previous_until = :until, secret_hash = :secret_hash "
            "WHERE public_id = :public_id AND revoked IS NULL",
            {"until": previous_until, "secret_hash": secret_hash, "public_id": public_id},
        )
        return self.find(public_id) if changed else None

    def revoke(self, public_id: str, at: float) -> KeyRecord | None:
        """Mark a key revoked; the first time stands. None: no such key."""
        sql = "UPDATE api_keys SET revoked = coalesce(revoked, :at) WHERE public_id = :public_id"
        self.database.write(sql, {"at": at, "public_id": public_id})
        return self.find(public_id)


def _values(record: KeyRecord) -> dict[str, object]:
    own = {name: getattr(record, name) for name in _NAMES if name not in _LIMITS}
    models = None if record.models is None else json.dumps(record.models)
    return {**own, **asdict(record.limits), "scope": record.scope.value, "models": models}


def _record(row: Row) -> KeyRecord:
    values: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    limits = Limits(**{name: values.pop(name) for name in _LIMITS})
    models = values.pop("models")
    scope = Scope(values.pop("scope"))
    return KeyRecord(**values, scope=scope, models=None if models is None else tuple(json.loads(models)), limits=limits)
