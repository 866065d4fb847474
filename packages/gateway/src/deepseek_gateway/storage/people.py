"""The tables of organisations, teams and users."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.storage.database import Database, Row
from deepseek_gateway.storage.paging import Cursor

_TABLES: Final = {OwnerKind.ORG: "orgs", OwnerKind.TEAM: "teams", OwnerKind.USER: "users"}
_COLUMNS: Final = {
    OwnerKind.ORG: ("id", "name", "created", "disabled"),
    OwnerKind.TEAM: ("id", "name", "created", "disabled", "org_id"),
    OwnerKind.USER: ("id", "name", "created", "disabled", "org_id", "team_id"),
}
_USED_IN: Final = {
    OwnerKind.ORG: (("teams", "org_id"), ("users", "org_id"), ("api_keys", "org_id")),
    OwnerKind.TEAM: (("users", "team_id"), ("api_keys", "team_id")),
    OwnerKind.USER: (("api_keys", "user_id"),),
}
# The statements below hold only these names, never a caller's text.


@dataclass(frozen=True, slots=True)
class PeopleTables:
    """Owners by kind and id."""

    database: Database

    def insert(self, owner: Owner) -> None:
        """Keep a new owner.

        Raises:
            StoreConflictError: its name is taken, or its organisation or team is gone.
        """
        names = _COLUMNS[owner.kind]
        marks = ", ".join(f":{name}" for name in names)
        sql = f"INSERT INTO {_TABLES[owner.kind]} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608
        self.database.write(sql, asdict(owner))

    def find(self, kind: OwnerKind, owner_id: str) -> Owner | None:
        """The owner with an id."""
        return self._one(kind, "id = :id", {"id": owner_id})

    def find_named(self, kind: OwnerKind, name: str, org_id: str | None) -> Owner | None:
        """The owner with a name, within its organisation."""
        where = "name = :name" if kind is OwnerKind.ORG else "name = :name AND org_id = :org_id"
        return self._one(kind, where, {"name": name, "org_id": org_id})

    def page(self, kind: OwnerKind, org_id: str | None, after: Cursor | None, limit: int) -> list[Owner]:
        """The next owners of a list, the oldest first: of one organisation, or of all."""
        conditions: list[str] = []
        values: dict[str, object] = {"org_id": org_id, "limit": limit}
        if org_id is not None:
            conditions.append("id = :org_id" if kind is OwnerKind.ORG else "org_id = :org_id")
        if after is not None:
            conditions.append("(created, id) > (:after_created, :after_id)")
            values |= {"after_created": after.created, "after_id": after.id}
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self.database.read(f"{_select(kind)} {where} ORDER BY created, id LIMIT :limit", values)
        return [_owner(kind, row) for row in rows]

    def change(self, kind: OwnerKind, owner_id: str, changes: Mapping[str, object]) -> Owner | None:
        """Set `name`, `disabled` or `team_id`. None: there is no such owner.

        Raises:
            StoreConflictError: the name is taken.
        """
        assert changes.keys() <= {"name", "disabled", "team_id"}
        settings = ", ".join(f"{name} = :{name}" for name in changes)
        sql = f"UPDATE {_TABLES[kind]} SET {settings} WHERE id = :id"  # noqa: S608
        return self.find(kind, owner_id) if self.database.write(sql, {**changes, "id": owner_id}) else None

    def delete_unused(self, kind: OwnerKind, owner_id: str) -> bool:
        """Delete an owner that nothing refers to; False when something does, or it is not there."""
        unused = " AND ".join(
            f"NOT EXISTS (SELECT 1 FROM {table} WHERE {column} = :id)"  # noqa: S608
            for table, column in _USED_IN[kind]
        )
        sql = f"DELETE FROM {_TABLES[kind]} WHERE id = :id AND {unused}"  # noqa: S608
        return bool(self.database.write(sql, {"id": owner_id}))

    def _one(self, kind: OwnerKind, where: str, values: dict[str, object]) -> Owner | None:
        rows = self.database.read(f"{_select(kind)} WHERE {where}", values)
        return _owner(kind, rows[0]) if rows else None


def _select(kind: OwnerKind) -> str:
    return f"SELECT {', '.join(_COLUMNS[kind])} FROM {_TABLES[kind]}"  # noqa: S608


def _owner(kind: OwnerKind, row: Row) -> Owner:
    return Owner(kind, **dict(zip(_COLUMNS[kind], row, strict=True)))
