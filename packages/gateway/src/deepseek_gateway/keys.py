"""API keys: make, check, rotate, revoke. `dsk_<12 public id>_<43 secret>_<6 crc>`, every part base62.

The public id is index and label. The crc refuses a mistyped key without a look-up. Only
HMAC-SHA-256(pepper, secret) is kept, so a stolen store is of no use without the pepper.
"""

import time
from collections.abc import Callable

from deepseek_gateway.operator_errors import OperatorError
from deepseek_gateway.records import INFERENCE, KeyRecord, Limits
from deepseek_gateway.settings import Settings
from deepseek_gateway.storage.base import Store

DEFAULT_GRACE_S = 24 * 3600.0


class InvalidKeyError(Exception):
    """A token that opens nothing. `reason`: malformed, unknown, revoked or expired."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the API key is {reason}")
        self.reason = reason


class KeyNotFoundError(OperatorError):
    """No key has this id."""


def generate_key() -> tuple[str, str]:
    """A new random key: its public id and its full text."""
    raise NotImplementedError


def open_keyring(settings: Settings, store: Store) -> "KeyRing":
    """The keys of this store under the settings' pepper (GATEWAY_KEY_PEPPER, or the state folder's file).

    Raises:
        PepperError: there is no pepper, or the store's keys were made with another one.
    """
    raise NotImplementedError


class KeyRing:
    """The keys of one store. `authenticate` is for the event loop; the rest blocks and is for the command line."""

    def __init__(self, store: Store, pepper: bytes, clock: Callable[[], float] = time.time) -> None:
        raise NotImplementedError

    async def authenticate(self, token: str) -> KeyRecord:
        """The key behind a bearer token, neither revoked nor expired.

        Raises:
            InvalidKeyError: there is none.
            StoreUnavailableError: the store has not answered for 5 s, so a revocation might go unseen.
        """
        raise NotImplementedError

    def issue(
        self,
        name: str,
        *,
        scopes: frozenset[str] = frozenset({INFERENCE}),
        models: tuple[str, ...] = (),
        limits: Limits = Limits(),
        expires_at: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make and keep a key: its record, and its full text, which is nowhere else."""
        raise NotImplementedError

    def rotate(self, key_id: str, *, grace_s: float = DEFAULT_GRACE_S) -> tuple[KeyRecord, str]:
        """Give a key a new secret; the old one works for `grace_s` more. Its record and its new full text."""
        raise NotImplementedError

    def revoke(self, key_id: str) -> KeyRecord:
        """Revoke a key for good, at once here and within 5 s in every running gateway."""
        raise NotImplementedError

    def list_keys(self) -> list[KeyRecord]:
        """Every key, oldest first."""
        raise NotImplementedError
