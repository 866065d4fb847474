"""Numbered SQL migrations, each applied once, whole, by an explicit command."""

import hashlib
import sqlite3
import time
from dataclasses import dataclass
from importlib.resources import files

from deepseek_gateway.errors import StoreError

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


def all_migrations() -> list[Migration]:
    """Those that came with this version, in order."""
    folder = files("deepseek_gateway.storage").joinpath("migrations")
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".sql")]
    named = sorted((entry.name.removesuffix(".sql"), entry.read_text("utf-8")) for entry in found)
    return [Migration(int(name.partition("_")[0]), name, sql) for name, sql in named]


def pending_migrations(connection: sqlite3.Connection) -> list[Migration]:
    """Those that the store still needs.

    Raises:
        StoreError: the store is newer than this version, or holds a migration with other content.
    """
    known = {migration.number: migration for migration in all_migrations()}
    applied = _applied(connection)
    for number, (name, checksum) in applied.items():
        if number not in known:
            raise StoreError(f"the store has migration {name}, which this version does not know: install a newer one")
        if known[number].checksum != checksum:
            raise StoreError(f"migration {name} changed after it was applied: install the version that wrote the store")
    return [migration for number, migration in known.items() if number not in applied]


def migrate(connection: sqlite3.Connection) -> list[Migration]:
    """Apply what is pending, in one transaction; gives what was applied. Two processes at once do it once."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(_TABLE)
        pending = pending_migrations(connection)
        for migration in pending:
            for statement in _statements(migration.sql):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)",
                (migration.number, migration.name, migration.checksum, time.time()),
            )
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return pending


def _applied(connection: sqlite3.Connection) -> dict[int, tuple[str, str]]:
    there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_migrations'").fetchone()
    if there is None:
        return {}
    rows = connection.execute("SELECT number, name, checksum FROM schema_migrations ORDER BY number")
    return {number: (name, checksum) for number, name, checksum in rows}


def _statements(sql: str) -> list[str]:
    """The script's statements: `executescript` would commit the transaction that they belong to."""
    statements: list[str] = []
    draft = ""
    for line in sql.splitlines(keepends=True):
        draft += line
        if sqlite3.complete_statement(draft):
            statements.append(draft)
            draft = ""
    return statements
