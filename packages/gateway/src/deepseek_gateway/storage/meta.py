"""Facts about the store itself."""

from dataclasses import dataclass

from deepseek_gateway.storage.database import Database


@dataclass(frozen=True, slots=True)
class MetaTable:
    """A few named values."""

    database: Database

    def get(self, name: str) -> str | None:
        """A fact about the store."""
        rows = self.database.read("SELECT value FROM meta WHERE name = :name", {"name": name})
        return rows[0][0] if rows else None

    def set_once(self, name: str, value: str) -> None:
        """Keep a fact about the store; the first value stands."""
        sql = "INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING"
        self.database.write(sql, {"name": name, "value": value})
