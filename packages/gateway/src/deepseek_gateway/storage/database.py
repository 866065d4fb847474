"""What the tables need of a database, so that one SQL text serves SQLite and PostgreSQL.

The text keeps to what both understand: named parameters (`:key_id`), standard types, ON CONFLICT, RETURNING; no colon
and no percent sign in a literal. Calls block; whoever has an event loop calls them from a thread.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Literal, Protocol

Row = tuple[Any, ...]
Values = Mapping[str, object]
NO_VALUES: Values = MappingProxyType({})
NAMED = re.compile(r"(?<![:\w]):([a-z_]\w*)")
"""A named parameter in a statement."""


class Transaction(Protocol):
    """Statements that take effect together, or not at all."""

    def read(self, sql: str, values: Values = NO_VALUES) -> list[Row]:
        """All rows of a SELECT, or of a statement with RETURNING."""
        ...

    def write(self, sql: str, values: Values = NO_VALUES) -> int:
        """Run a statement; gives how many rows it changed."""
        ...

    def write_many(self, sql: str, rows: Sequence[Values]) -> None:
        """Run one statement for each of many rows."""
        ...

    def lock(self, name: str) -> None:
        """Wait until no other transaction, of any process, holds this name; held to the end of this one."""
        ...


class Database(Protocol):
    """A database that is open. Safe to use from several threads.

    Every call may raise StoreUnavailableError (it cannot be reached, or is busy for too long: try again later),
    StoreConflictError (a constraint forbids the change) and StoreValueError (a value cannot be held).
    """

    kind: Literal["sqlite", "postgresql"]

    def read(self, sql: str, values: Values = NO_VALUES) -> list[Row]:
        """All rows of a SELECT; within a transaction of the same thread as that one sees them."""
        ...

    def report(self, sql: str, values: Values = NO_VALUES, *, timeout_s: float = 10.0) -> list[Row]:
        """All rows of a SELECT that may take long, beside all others: no look-up waits for it.

        Raises:
            StoreSlowError: it took longer than `timeout_s`, and was ended.
        """
        ...

    def write(self, sql: str, values: Values = NO_VALUES) -> int:
        """Run one statement in a transaction of its own; gives how many rows it changed."""
        ...

    def transaction(self) -> AbstractContextManager[Transaction]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Within one of the same thread it is a part of that: rolled back by itself, committed with it. So a service puts
        what several tables do, and the audit log's entry, into one.
        """
        ...

    def floor(self, expression: str) -> str:
        """SQL for the largest whole number up to an expression that is not negative."""
        ...

    def has_table(self, name: str) -> bool:
        """Whether there is such a table."""
        ...

    def run_script(self, transaction: Transaction, script: str) -> None:
        """Run the statements of a migration."""
        ...

    def scrub(self, table: str) -> None:
        """Take deleted rows of a table out of the database's own files, as far as it can; not within a transaction."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...
