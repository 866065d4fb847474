"""One session of PostgreSQL that holds a lock for as long as its process lives, whatever ends it."""

import psycopg

from deepseek_gateway.errors import StoreUnavailableError

CLASS = 0x6473  # of two-part advisory locks; those of transactions have one part
DEAD_PEER = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
"""The server lets go of the lock within 20 s when the whole machine of its holder is gone."""


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

    def take(self) -> bool:
        """Whether it is held: taken now, or still held by the session that took it.

        Raises:
            StoreUnavailableError: the server cannot be asked.
        """
        try:
            if self._connection is not None:
                self._connection.execute("SELECT 1")
                return True
            return self._try()
        except psycopg.Error as error:
            self.close()
            raise StoreUnavailableError(f"the store cannot be asked now: {error}") from error

    def close(self) -> None:
        """Let go of it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _try(self) -> bool:
        options = f"-c statement_timeout=5000 {DEAD_PEER}"
        connection = psycopg.connect(
            self._url, autocommit=True, connect_timeout=5, application_name="deepseek-gateway limits", options=options
        )
        row = connection.execute(self._sql).fetchone()
        if row is not None and row[0]:
            self._connection = connection
            return True
        connection.close()
        return False
