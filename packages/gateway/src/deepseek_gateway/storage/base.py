"""The store's interface. Calls block; whoever has an event loop calls them from a thread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.ledger.records import LedgerRow


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """What one key used on one day (UTC, `2026-11-23`)."""

    key_id: str
    key_name: str
    day: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Store(Protocol):
    """Keys, the ledger, and a few facts about the store itself."""

    def insert_key(self, record: KeyRecord) -> None:
        """Keep a new key."""
        ...

    def find_key(self, public_id: str) -> KeyRecord | None:
        """The key with a public id, revoked and expired ones too."""
        ...

    def list_keys(self) -> list[KeyRecord]:
        """All keys, the oldest first."""
        ...

    def rotate_key(self, public_id: str, secret_hash: str, previous_until: float) -> KeyRecord | None:
        """Replace a key's hash and keep the old one until a Unix time. None: no such key, or it is revoked."""
        ...

    def revoke_key(self, public_id: str, at: float) -> KeyRecord | None:
        """Mark a key revoked; the first time stands. None: no such key."""
        ...

    def insert_ledger(self, rows: Sequence[LedgerRow]) -> None:
        """Keep rows, all or none. A (request_id, attempt) that is there stays as it is: replays are harmless."""
        ...

    def ledger_rows(self, key_id: str | None = None) -> list[LedgerRow]:
        """Rows of one key or of all, the oldest first."""
        ...

    def tokens_since(self, since: float) -> dict[str, int]:
        """Tokens of each key from a Unix time on."""
        ...

    def usage(self, since: float | None, until: float | None, key_id: str | None) -> list[UsageTotal]:
        """Totals by key and day, for requests created in [since, until)."""
        ...

    def get_meta(self, name: str) -> str | None:
        """A fact about the store."""
        ...

    def set_meta(self, name: str, value: str) -> None:
        """Keep a fact about the store; the first value stands."""
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...
