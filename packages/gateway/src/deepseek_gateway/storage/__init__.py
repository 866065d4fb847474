"""Keys and ledger at rest."""

from deepseek_gateway.settings import Settings
from deepseek_gateway.storage.base import (
    Store,
    StoredKey,
    StoreError,
    StoreNotMigratedError,
    StoreUnavailableError,
)
from deepseek_gateway.storage.sqlite import SqliteStore

__all__ = ["Store", "StoreError", "StoreNotMigratedError", "StoreUnavailableError", "StoredKey", "open_store"]


def open_store(settings: Settings) -> Store:
    """Open the store of these settings.

    Raises:
        StoreNotMigratedError: there is none yet, or it is older or newer than this program.
        StoreUnavailableError: it cannot be opened.
    """
    return SqliteStore.open(settings.store_path)
