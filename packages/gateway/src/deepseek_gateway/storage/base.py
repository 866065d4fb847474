"""What the gateway keeps and asks for, whatever database keeps it.

Every method blocks on the disk and may be called from any thread: on an event loop, use `asyncio.to_thread`.
Every method raises `StoreUnavailableError` when the database cannot do its work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from deepseek_gateway.operator_errors import OperatorError
from deepseek_gateway.records import KeyRecord, Settlement, UsageRow


class StoreError(OperatorError):
    """The store cannot be used."""


class StoreNotMigratedError(StoreError):
    """There is no store yet, or its tables are older than this program; the message names the command."""


class StoreUnavailableError(StoreError):
    """The database failed: disk full, file locked, damaged or unreadable."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it lies in the store: its record, and HMACs of its secret and of the one before the last rotation."""

    record: KeyRecord
    secret_hash: bytes
    previous_hash: bytes | None = None


class Store(Protocol):
    """Keys and ledger."""

    def insert_key(self, key: StoredKey) -> None:
        """Keep a new key; its id must be new."""
        ...

    def find_key(self, key_id: str) -> StoredKey | None:
        """The key with this id, revoked and expired ones included."""
        ...

    def list_keys(self) -> list[KeyRecord]:
        """Every key, oldest first."""
        ...

    def rotate_key(self, key_id: str, secret_hash: bytes, previous_valid_until: float) -> bool:
        """Put a new secret in force; the one it replaces works until `previous_valid_until`. False: no such key."""
        ...

    def revoke_key(self, key_id: str, revoked_at: float) -> bool:
        """Revoke a key for good; the first revocation's time stays. False: no such key."""
        ...

    def keys_version(self) -> int:
        """A number that grows with every change to any key, by any process."""
        ...

    def bind_pepper(self, fingerprint: str) -> str:
        """The fingerprint of the pepper that this store's keys were made with: the first one ever given here."""
        ...

    def upsert_settlements(self, settlements: Sequence[Settlement]) -> int:
        """Add ledger rows, durably and all or none. A row already there stays as it is. The number of new rows."""
        ...

    def usage(self, *, since: str | None = None, until: str | None = None, key_id: str | None = None) -> list[UsageRow]:
        """Usage by UTC day and key, oldest first; `since` and `until` are days (`2026-05-31`), both included."""
        ...

    def month_usage(self, now: float) -> dict[str, int]:
        """Tokens billed to each key id in the calendar month (UTC) that holds `now`."""
        ...

    def close(self) -> None:
        """Let go of the database; nothing else may be called after it."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
