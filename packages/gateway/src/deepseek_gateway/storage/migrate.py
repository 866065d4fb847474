"""Numbered SQL migrations, each applied once, whole, by an explicit command.

`0005_audit.sql` holds what both databases understand; `0005_audit.sqlite.sql` and `0005_audit.postgresql.sql`, where
they exist, add what only one does (triggers), as a part of the same migration.
"""

import hashlib
import time
from dataclasses import dataclass
from importlib.resources import files

from deepseek_gateway.errors import StoreError
from deepseek_gateway.storage.database import Database

_TABLE = """CREATE TABLE IF NOT EXISTS schema_migrations (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied REAL NOT NULL)"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema; `name` is `0001_keys_and_ledger`."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def all_migrations(kind: str) -> list[Migration]:
    """Those that came with this version for a kind of database, in order."""
    folder = files("deepseek_gateway.storage").joinpath("migrations")
    texts = {entry.name: entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(".sql")}
    found: list[Migration] = []
    for file, text in sorted(texts.items()):
        name, _, special = file.removesuffix(".sql").partition(".")
        if not special:
            found.append(Migration(int(name.partition("_")[0]), name, text + texts.get(f"{name}.{kind}.sql", "")))
    return found


def pending_migrations(database: Database) -> list[Migration]:
    """Those that the store still needs.

    Raises:
        StoreError: the store is newer than this version, or holds a migration with other content.
    """
    known = {migration.number: migration for migration in all_migrations(database.kind)}
    applied = _applied(database)
    for number, (name, checksum) in applied.items():
        if number not in known:
            raise StoreError(f"the store has migration {name}, which this version does not know: install a newer one")
        if known[number].checksum != checksum:
            raise StoreError(f"migration {name} changed after it was applied: install the version that wrote the store")
    return [migration for number, migration in known.items() if number not in applied]


def migrate(database: Database) -> list[Migration]:
    """Apply what is pending, in one transaction; gives what was applied. Two processes at once do it once."""
    with database.transaction() as transaction:
        transaction.lock("schema_migrations")
        database.run_script(transaction, _TABLE)
    with database.transaction() as transaction:
        transaction.lock("schema_migrations")
        pending = pending_migrations(database)  # on another connection: it sees what those before us committed
        for migration in pending:
            database.run_script(transaction, migration.sql)
            transaction.write(
                "INSERT INTO schema_migrations VALUES (:number, :name, :checksum, :applied)",
                {
                    "number": migration.number,
                    "name": migration.name,
                    "checksum": migration.checksum,
                    "applied": time.time(),
                },
            )
    return pending


def _applied(database: Database) -> dict[int, tuple[str, str]]:
    if not database.has_table("schema_migrations"):
        return {}
    rows = database.read("SELECT number, name, checksum FROM schema_migrations ORDER BY number")
    return {number: (name, checksum) for number, name, checksum in rows}
