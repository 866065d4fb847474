"""One session of PostgreSQL that holds locks for as long as its process lives, whatever ends it."""

import contextlib
import hashlib
from collections.abc import Generator

import psycopg

from deepseek_gateway.errors import StoreUnavailableError

CLASS = 0x6473  # of two-part advisory locks; those of transactions have one part
MARK_CLASS = 0x6474
MARKING = 2
"""The lock, beside those by number, that lets one session at a time see that it is alone, and mark."""

DEAD_PEER = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
"""The server lets go of the lock within 20 s when the whole machine of its holder is gone."""

_OTHERS = (
    f"SELECT DISTINCT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND classid = {MARK_CLASS} "  # noqa: S608
    "AND objsubid = 2 AND granted AND pid <> pg_backend_pid() "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
).encode()


class Claim:
    """A lock by number, for one alone or to be shared. Calls block, and are not for several threads at once.

    Args:
        url: as `PostgresDatabase` takes it.
        number: which lock.
        is_shared: others may hold it as well, if they share it too.
    """

    def __init__(self, url: str, number: int, *, is_shared: bool) -> None:
        self._url = url
        call = f"pg_try_advisory_lock{'_shared' if is_shared else ''}({CLASS}, {number})"
        self._sql = f"SELECT {call}".encode()
        self._connection: psycopg.Connection[tuple[bool]] | None = None
        self._mark: int | None = None

    def take(self) -> bool:
        """Whether it is held: taken now, or still held by the session that took it.

        Raises:
            StoreUnavailableError: the server cannot be asked.
        """
        with self._asking():
            if self._connection is not None:
                self._connection.execute("SELECT 1")
                return True
            return self._try()

    def mark(self, text: str | None, *, if_alone: bool = False) -> bool:
        """Show all other claims what this one, which is held, stands for; None shows nothing any more.

        Args:
            text: what it stands for.
            if_alone: show it only where nobody shows anything else.

        Returns:
            Whether no other claim shows anything else.

        Raises:
            StoreUnavailableError: the server cannot be asked, or the claim is lost.
        """
        with self._asking():
            connection = self._connection
            if connection is None:
                raise StoreUnavailableError("the claim is lost")
            mark = None if text is None else number_of(text)
            if not if_alone:
                self._show(connection, mark)
                return _others(connection) <= {mark}
            connection.execute(f"SELECT pg_advisory_lock({CLASS}, {MARKING})".encode())
            try:
                is_alone = _others(connection) <= {mark}
                if is_alone:
                    self._show(connection, mark)
            finally:
                connection.execute(f"SELECT pg_advisory_unlock({CLASS}, {MARKING})".encode())
            return is_alone

    def close(self) -> None:
        """Let go of it."""
        self._mark = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _asking(self) -> Generator[None]:
        try:
            yield
        except psycopg.Error as error:
            self.close()
            raise StoreUnavailableError(f"the store cannot be asked now: {error}") from error

    def _try(self) -> bool:
        connection = _connect(self._url)
        row = connection.execute(self._sql).fetchone()
        if row is not None and row[0]:
            self._connection = connection
            return True
        connection.close()
        return False

    def _show(self, connection: "psycopg.Connection[tuple[bool]]", mark: int | None) -> None:
        if mark == self._mark:
            return
        if mark is not None:
            connection.execute(f"SELECT pg_advisory_lock_shared({MARK_CLASS}, {mark})".encode())
        if self._mark is not None:
            connection.execute(f"SELECT pg_advisory_unlock_shared({MARK_CLASS}, {self._mark})".encode())
        self._mark = mark


def marks_of(url: str) -> frozenset[int]:
    """What all claims that are held show, as `number_of` gives it.

    Raises:
        StoreUnavailableError: the server cannot be asked.
    """
    try:
        with contextlib.closing(_connect(url)) as connection:
            return _others(connection)
    except psycopg.Error as error:
        raise StoreUnavailableError(f"the store cannot be asked now: {error}") from error


def number_of(text: str) -> int:
    """A text as the number of a lock: PostgreSQL's are 32 bits with a sign."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _connect(url: str) -> "psycopg.Connection[tuple[bool]]":
    options = f"-c statement_timeout=5000 {DEAD_PEER}"
    return psycopg.connect(
        url, autocommit=True, connect_timeout=5, application_name="deepseek-gateway limits", options=options
    )


def _others(connection: "psycopg.Connection[tuple[bool]]") -> frozenset[int]:
    return frozenset(int(row[0]) for row in connection.execute(_OTHERS))
