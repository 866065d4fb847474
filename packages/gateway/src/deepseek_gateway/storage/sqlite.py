"""The store in one SQLite file."""

from pathlib import Path

from deepseek_gateway.storage.base import Store


class SqliteStore(Store):
    """Keys and ledger in SQLite."""

    @classmethod
    def open(cls, path: Path) -> "SqliteStore":
        """Open a migrated store."""
        raise NotImplementedError
