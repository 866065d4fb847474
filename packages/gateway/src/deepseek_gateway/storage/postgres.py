"""PostgreSQL through psycopg 3 (extra `postgres`): a small pool of connections that heals itself.

psycopg, because it has one API for blocking and async use and is the driver that PostgreSQL's own documentation leads
to; its pool replaces connections that a restart of the server broke.
"""

import functools
import re
import threading
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, LiteralString, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from deepseek_gateway.config.secrets import ESCAPES, without_values
from deepseek_gateway.errors import (
    StoreConflictError,
    StoreError,
    StoreSlowError,
    StoreUnavailableError,
    StoreValueError,
)
from deepseek_gateway.storage.database import NAMED, NO_VALUES, Row, Transaction, Values

MAX_CONNECTIONS = 5
WAIT_S = 5.0
"""Seconds for a connection, and for a statement: a caller's request must not hang with the store."""

_TYPES = {"INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION"}
"""PostgreSQL's own INTEGER has 32 bits, and its REAL cannot hold a Unix time."""


class PostgresDatabase:
    """See `Database`.

    Args:
        url: `postgresql://user:password@host/name`, as libpq reads it.

    Raises:
        StoreError: it cannot be read, or the database is not one of UTF-8.
        StoreUnavailableError: the server cannot be reached.
    """

    kind: Literal["sqlite", "postgresql"] = "postgresql"

    def __init__(self, url: str) -> None:
        _check(url)
        settings = {"connect_timeout": "5", "options": f"-c statement_timeout={int(WAIT_S * 1000)}"}
        settings["client_encoding"] = "utf8"  # whatever PGCLIENTENCODING says
        self._pool = ConnectionPool(
            url,
            min_size=1,
            max_size=MAX_CONNECTIONS,
            timeout=WAIT_S,
            kwargs={"autocommit": True, "application_name": "deepseek-gateway", **settings},
            check=ConnectionPool.check_connection,
            reconnect_timeout=WAIT_S,
            open=False,
        )
        try:
            self._pool.open(wait=True, timeout=WAIT_S)
        except PoolTimeout as error:
            self._pool.close()
            raise StoreUnavailableError(f"PostgreSQL cannot be reached within {WAIT_S:g} s: see its log") from error
        self._mine = threading.local()
        try:
            self._check_encoding()
        except BaseException:
            self._pool.close()
            raise

    def _check_encoding(self) -> None:
        """A database of another encoding has no place for many characters, and SQL_ASCII gives bytes for texts."""
        with self._connection() as connection:
            encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreError(
                f"the PostgreSQL database is encoded in {encoding}: make one with "
                "CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
            )

    def read(self, sql: str, values: Values = NO_VALUES) -> list[Row]:
        """All rows of a SELECT."""
        with self._connection() as connection:
            return _PostgresTransaction(connection).read(sql, values)

    def report(self, sql: str, values: Values = NO_VALUES, *, timeout_s: float = 10.0) -> list[Row]:
        """All rows of a SELECT, with a time of its own."""
        with self._connection() as connection, connection.transaction():
            connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(round(timeout_s * 1000)),))
            try:
                return _PostgresTransaction(connection).read(sql, values)
            except psycopg.errors.QueryCanceled as error:
                raise StoreSlowError(f"a report took longer than {timeout_s:g} s") from error

    def write(self, sql: str, values: Values = NO_VALUES) -> int:
        """Run one statement."""
        if self._inside is not None:
            with self.transaction() as transaction:  # a statement that fails must not end the outer one
                return transaction.write(sql, values)
        with self._connection() as connection:
            return _PostgresTransaction(connection).write(sql, values)

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """A transaction at PostgreSQL's default level, READ COMMITTED: take `lock` where that is too little."""
        with self._connection() as connection, connection.transaction():
            outer = self._inside
            self._mine.connection = connection
            try:
                yield _PostgresTransaction(connection)
            finally:
                self._mine.connection = outer

    @property
    def _inside(self) -> psycopg.Connection[Row] | None:
        """The connection on which this thread has a transaction open."""
        return getattr(self._mine, "connection", None)

    def floor(self, expression: str) -> str:
        """A cast alone would round."""
        return f"CAST(floor({expression}) AS BIGINT)"

    def has_table(self, name: str) -> bool:
        """Whether there is such a table."""
        return self.read("SELECT to_regclass(:name) IS NOT NULL", {"name": name})[0][0]

    def run_script(self, transaction: Transaction, script: str) -> None:
        """PostgreSQL takes the whole script at once; types that are too narrow there are widened."""
        for narrow, wide in _TYPES.items():
            script = re.sub(rf"\b{narrow}\b", wide, script)
        assert isinstance(transaction, _PostgresTransaction)
        transaction.run(script)

    def scrub(self, table: str) -> None:
        """Vacuum; the server's write-ahead log and backups keep what they have until they are recycled."""
        with self._connection() as connection:
            connection.execute(cast("LiteralString", f"VACUUM {table}"))

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    @contextmanager
    def _connection(self) -> Generator[psycopg.Connection[Row]]:
        try:
            if self._inside is not None:
                yield self._inside
                return
            with self._pool.connection() as connection:
                yield connection
        except psycopg.IntegrityError as error:
            raise StoreConflictError(f"the store refuses the change: {error}") from error
        except (psycopg.DataError, UnicodeEncodeError) as error:
            raise StoreValueError(f"the store cannot hold a value: {error}") from error
        except (psycopg.Error, PoolTimeout) as error:
            raise StoreUnavailableError(f"the store cannot be used now: {error}") from error


def _check(url: str) -> None:
    """Refuse what libpq would complain of in the pool's log lines, which quote the URL."""
    try:
        ports = conninfo_to_dict(url).get("port") or ""
    except psycopg.Error as error:
        raise StoreError(f"GATEWAY_STORE_URL: {without_values(error).strip()}: {ESCAPES}") from None
    if not all(port.isdigit() for port in str(ports).split(",") if port):
        raise StoreError(f"GATEWAY_STORE_URL: its port is no number: {ESCAPES}")


class _PostgresTransaction:
    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._connection = connection

    def read(self, sql: str, values: Values = NO_VALUES) -> list[Row]:
        return self._connection.execute(_positions(sql), dict(values)).fetchall()

    def write(self, sql: str, values: Values = NO_VALUES) -> int:
        return self._connection.execute(_positions(sql), dict(values)).rowcount

    def write_many(self, sql: str, rows: Sequence[Values]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_positions(sql), [dict(values) for values in rows])

    def lock(self, name: str) -> None:
        number = zlib.crc32(name.encode())  # 32 bits of the 64 that an advisory lock has
        self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (number,))

    def run(self, script: str) -> None:
        self._connection.execute(cast("Any", script))


@functools.lru_cache(maxsize=1024)
def _positions(sql: str) -> LiteralString:
    """`:name` in psycopg's spelling."""
    return cast("LiteralString", NAMED.sub(r"%(\1)s", sql.replace("%", "%%")))
