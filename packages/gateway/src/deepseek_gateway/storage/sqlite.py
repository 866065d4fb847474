"""The store in one SQLite file, in WAL mode: one connection that writes, one that reads."""

import fcntl
import json
import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from deepseek_gateway.auth.records import KeyRecord, Scope
from deepseek_gateway.errors import StoreError
from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.rules import Limits
from deepseek_gateway.storage.base import UsageTotal
from deepseek_gateway.storage.migrate import Migration, migrate, pending_migrations

BUSY_TIMEOUT_S = 5.0

_LEDGER_NAMES = tuple(field.name for field in fields(LedgerRow))
_LEDGER_COLUMNS = ", ".join(_LEDGER_NAMES)
_LEDGER_MARKS = ", ".join("?" for _ in _LEDGER_NAMES)
_KEY_COLUMNS = (
    "public_id, secret_hash, name, scope, created, models, requests_per_minute, tokens_per_minute, "
    "concurrent_requests, tokens_per_month, expires, revoked, previous_hash, previous_until"
)
# The statements below hold only these column names and question marks, never a caller's text.


def migrate_sqlite(path: Path) -> list[Migration]:
    """Create the file if needed and bring it up to date; gives the migrations applied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(path.with_name(f"{path.name}.lock")), closing(_connect(path)) as connection:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        return migrate(connection)


class SqliteStore:
    """See `storage.base.Store`. Safe to call from several threads.

    Raises:
        StoreError: the file is missing, or needs `deepseek-gateway migrate`.
    """

    def __init__(self, path: Path) -> None:
        advice = "run `deepseek-gateway migrate`"
        if not path.exists():
            raise StoreError(f"there is no store at {path}: {advice}")
        self._reader = _connect(path)
        if pending := pending_migrations(self._reader):
            self._reader.close()
            raise StoreError(f"the store {path} lacks {', '.join(m.name for m in pending)}: {advice}")
        self._reader.execute("PRAGMA query_only = ON")
        self._writer = _connect(path)
        # FULL: a committed ledger row survives a power cut, so the journal may forget it.
        self._writer.execute("PRAGMA synchronous = FULL")
        self._reading, self._writing = threading.Lock(), threading.Lock()

    def insert_key(self, record: KeyRecord) -> None:
        """Keep a new key."""
        models = None if record.models is None else json.dumps(record.models)
        values = (
            *(record.public_id, record.secret_hash, record.name, record.scope.value, record.created, models),
            *astuple(record.limits),
            *(record.expires, record.revoked, record.previous_hash, record.previous_until),
        )
        marks = ", ".join("?" for _ in values)
        with self._writing:
            self._writer.execute(f"INSERT INTO api_keys ({_KEY_COLUMNS}) VALUES ({marks})", values)  # noqa: S608

    def find_key(self, public_id: str) -> KeyRecord | None:
        """The key with a public id."""
        rows = self._read(f"SELECT {_KEY_COLUMNS} FROM api_keys WHERE public_id = ?", (public_id,))  # noqa: S608
        return _key_record(rows[0]) if rows else None

    def list_keys(self) -> list[KeyRecord]:
        """All keys, the oldest first."""
        rows = self._read(f"SELECT {_KEY_COLUMNS} FROM api_keys ORDER BY created, public_id")  # noqa: S608
        return [_key_record(row) for row in rows]

    def rotate_key(self, public_id: str, secret_hash: str, previous_until: float) -> KeyRecord | None:
        """Replace a key's hash and keep the old one until a Unix time."""
        with self._writing:
            changed = self._writer.execute(
                "UPDATE api_keys SET previous_hash = secret_hash, previous_until = ?, secret_hash = ? "
                "WHERE public_id = ? AND revoked IS NULL",
                (previous_until, secret_hash, public_id),
            ).rowcount
        return self.find_key(public_id) if changed else None

    def revoke_key(self, public_id: str, at: float) -> KeyRecord | None:
        """Mark a key revoked; the first time stands."""
        with self._writing:
            self._writer.execute(
                "UPDATE api_keys SET revoked = coalesce(revoked, ?) WHERE public_id = ?", (at, public_id)
            )
        return self.find_key(public_id)

    def insert_ledger(self, rows: Sequence[LedgerRow]) -> None:
        """Keep rows, all or none; those that are there stay as they are."""
        sql = (
            f"INSERT INTO ledger ({_LEDGER_COLUMNS}) VALUES ({_LEDGER_MARKS}) "  # noqa: S608
            "ON CONFLICT (request_id, attempt) DO NOTHING"
        )
        with self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._writer.executemany(sql, [astuple(row) for row in rows])
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def ledger_rows(self, key_id: str | None = None) -> list[LedgerRow]:
        """Rows of one key or of all, the oldest first."""
        sql = f"SELECT {_LEDGER_COLUMNS} FROM ledger WHERE ?1 IS NULL OR key_id = ?1 ORDER BY created"  # noqa: S608
        return [_ledger_row(row) for row in self._read(sql, (key_id,))]

    def tokens_since(self, since: float) -> dict[str, int]:
        """Tokens of each key from a Unix time on."""
        sql = "SELECT key_id, sum(prompt_tokens + completion_tokens) FROM ledger WHERE created >= ? GROUP BY key_id"
        return dict(self._read(sql, (since,)))

    def usage(self, since: float | None, until: float | None, key_id: str | None) -> list[UsageTotal]:
        """Totals by key and day, for requests created in [since, until)."""
        rows = self._read(
            """SELECT key_id, coalesce(api_keys.name, ''), date(ledger.created, 'unixepoch') AS day, count(*),
                sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens)
            FROM ledger LEFT JOIN api_keys ON public_id = key_id
            WHERE (?1 IS NULL OR ledger.created >= ?1) AND (?2 IS NULL OR ledger.created < ?2)
                AND (?3 IS NULL OR key_id = ?3)
            GROUP BY key_id, day ORDER BY day, key_id""",
            (since, until, key_id),
        )
        return [UsageTotal(*row) for row in rows]

    def get_meta(self, name: str) -> str | None:
        """A fact about the store."""
        rows = self._read("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def set_meta(self, name: str, value: str) -> None:
        """Keep a fact about the store; the first value stands."""
        with self._writing:
            self._writer.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (name, value))

    def close(self) -> None:
        """Let go of the file."""
        with self._reading, self._writing:
            self._reader.close()
            self._writer.close()

    def _read(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._reading:
            return self._reader.execute(sql, values).fetchall()


@contextmanager
def _only_one(lock_path: Path) -> Generator[None]:
    """One process at a time: SQLite's own waiting does not cover the switch to WAL."""
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions are written out where they are meant.
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _key_record(row: tuple[Any, ...]) -> KeyRecord:
    public_id, secret_hash, name, scope, created, models, *limits, expires, revoked, previous, until = row
    return KeyRecord(
        public_id=public_id,
        secret_hash=secret_hash,
        name=name,
        scope=Scope(scope),
        created=created,
        models=None if models is None else tuple(json.loads(models)),
        limits=Limits(*limits),
        expires=expires,
        revoked=revoked,
        previous_hash=previous,
        previous_until=until,
    )


def _ledger_row(row: tuple[Any, ...]) -> LedgerRow:
    values: dict[str, Any] = dict(zip(_LEDGER_NAMES, row, strict=True))
    values["stream"] = bool(values["stream"])
    return LedgerRow(**values)
