"""Changes a store as somebody would who may do anything to it: with its triggers off."""

import sqlite3
from contextlib import closing
from pathlib import Path


def tamper(sql: str, url: str | None, path: Path) -> None:
    """Run a statement that the store would refuse.

    Args:
        sql: the statement.
        url: the PostgreSQL store; None is SQLite.
        path: the SQLite file.
    """
    if url is None:
        with closing(sqlite3.connect(path)) as connection, connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")
            connection.execute(sql)
        return
    import psycopg  # an extra

    with psycopg.connect(url) as other:
        other.execute("SET session_replication_role = replica")
        other.execute(sql.encode())
