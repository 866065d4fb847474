"""SQLite in WAL mode: one connection that writes, one that reads."""

import contextlib
import fcntl
import functools
import sqlite3
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from deepseek_gateway.errors import (
    ConfigurationError,
    StoreConflictError,
    StoreSlowError,
    StoreUnavailableError,
    StoreValueError,
)
from deepseek_gateway.storage.database import NAMED, NO_VALUES, Row, Transaction, Values

BUSY_TIMEOUT_S = 5.0
CHECK_EVERY = 20_000
"""Steps of SQLite's machine between two looks at a report's clock: about a millisecond."""


class SqliteDatabase:
    """See `Database`. The file is made when it is not there."""

    kind: Literal["sqlite", "postgresql"] = "sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._open(path)
        except (StoreUnavailableError, OSError) as error:
            why = error.__cause__ if isinstance(error, StoreUnavailableError) else error.strerror
            raise ConfigurationError(f"the store {path} cannot be used: {why}") from error
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._mine = threading.local()

    def _open(self, path: Path) -> None:
        with _translated(), _only_one(path.with_name(f"{path.name}.lock")):
            self._writer = _connect(path)
            path.chmod(0o600)
            self._writer.execute("PRAGMA journal_mode = WAL")
            # FULL: a committed ledger row survives a power cut, so the journal may forget it.
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.execute("PRAGMA foreign_keys = ON")
            self._writer.execute("PRAGMA secure_delete = ON")  # an erased data key must not stay in a free page
            self._reader = _connect(path)
            self._reader.execute("PRAGMA query_only = ON")

    def read(self, sql: str, values: Values = NO_VALUES) -> list[Row]:
        """All rows of a SELECT."""
        if self._is_inside:
            with _translated():
                return self._writer.execute(*_by_place(sql, values)).fetchall()
        with self._reading, _translated():
            return self._reader.execute(*_by_place(sql, values)).fetchall()

    def report(self, sql: str, values: Values = NO_VALUES, *, timeout_s: float = 10.0) -> list[Row]:
        """All rows of a SELECT, on a connection of its own."""
        deadline = time.monotonic() + timeout_s
        with _translated(), closing(_connect(self._path)) as connection:
            connection.execute("PRAGMA query_only = ON")
            connection.set_progress_handler(lambda: time.monotonic() > deadline, CHECK_EVERY)
            try:
                return connection.execute(*_by_place(sql, values)).fetchall()
            except sqlite3.OperationalError as error:
                if time.monotonic() > deadline:
                    raise StoreSlowError(f"a report took longer than {timeout_s:g} s") from error
                raise

    def write(self, sql: str, values: Values = NO_VALUES) -> int:
        """Run one statement."""
        with self.transaction() as transaction:
            return transaction.write(sql, values)

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """A transaction; others wait for it."""
        if self._is_inside:
            with (
                _translated(),
                self._bracketed("SAVEPOINT inner", "RELEASE inner", "ROLLBACK TO inner", "RELEASE inner"),
            ):
                yield _SqliteTransaction(self._writer)
            return
        with self._writing, _translated(), self._bracketed("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"):
            self._mine.is_inside = True
            try:
                yield _SqliteTransaction(self._writer)
            finally:
                self._mine.is_inside = False

    @property
    def _is_inside(self) -> bool:
        """Whether this thread has a transaction open."""
        return getattr(self._mine, "is_inside", False)

    @contextmanager
    def _bracketed(self, begin: str, end: str, *undo: str) -> Generator[None]:
        self._writer.execute(begin)
        try:
            yield
            self._writer.execute(end)
        except BaseException:
            if self._writer.in_transaction:  # some errors have ended it
                for statement in undo:
                    self._writer.execute(statement)
            raise

    def floor(self, expression: str) -> str:
        """A cast cuts what follows the point."""
        return f"CAST({expression} AS INTEGER)"

    def has_table(self, name: str) -> bool:
        """Whether there is such a table."""
        return bool(self.read("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = :name", {"name": name}))

    def run_script(self, transaction: Transaction, script: str) -> None:
        """`executescript` would commit the transaction that the statements belong to."""
        draft = ""
        for line in script.splitlines(keepends=True):
            draft += line
            if sqlite3.complete_statement(draft):
                transaction.write(draft)
                draft = ""
        if draft.strip():
            transaction.write(draft)

    def scrub(self, table: str) -> None:  # noqa: ARG002  the log holds pages of all tables
        """Empty the write-ahead log, which holds pages as they were; what is deleted in the file is overwritten."""
        with self._writing, _translated():
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Let go of the file."""
        with self._reading, self._writing:
            self._reader.close()
            self._writer.close()


class _SqliteTransaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def read(self, sql: str, values: Values = NO_VALUES) -> list[Row]:
        return self._connection.execute(*_by_place(sql, values)).fetchall()

    def write(self, sql: str, values: Values = NO_VALUES) -> int:
        return self._connection.execute(*_by_place(sql, values)).rowcount

    def write_many(self, sql: str, rows: Sequence[Values]) -> None:
        statement, names = _placed(sql)
        self._connection.executemany(statement, [[values[name] for name in names] for values in rows])

    def lock(self, name: str) -> None:
        """Nothing to do: there is one writing transaction at a time."""


def _by_place(sql: str, values: Values) -> tuple[str, list[object]]:
    statement, names = _placed(sql) if values else (sql, ())
    return statement, [values[name] for name in names]


@functools.lru_cache(maxsize=1024)
def _placed(sql: str) -> tuple[str, tuple[str, ...]]:
    """A statement with `?` for its parameters, and their names.

    SQLite looks through all names for each: with 1,200 of them 3 ms, in which Python lets no other thread run.
    """
    return NAMED.sub("?", sql), tuple(NAMED.findall(sql))


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise StoreConflictError(f"the store refuses the change: {error}") from error
    except (sqlite3.DataError, OverflowError, UnicodeEncodeError) as error:
        raise StoreValueError(f"the store cannot hold a value: {error}") from error
    except sqlite3.Error as error:
        raise StoreUnavailableError(f"the store cannot be used now: {error}") from error


@contextmanager
def _only_one(lock_path: Path) -> Generator[None]:
    """One process at a time: SQLite's own waiting does not cover the switch to WAL."""
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(lock_path.open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions are written out where they are meant.
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    # An index for one statement, of the whole ledger by status, was made where a range of hours is all that is read.
    connection.execute("PRAGMA automatic_index = OFF")
    return connection
