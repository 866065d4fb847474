"""Administration of keys: create, rotate, revoke."""

import time
from dataclasses import dataclass

from deepseek_gateway.auth.keys import hash_secret, new_key
from deepseek_gateway.auth.records import KeyRecord, Scope
from deepseek_gateway.errors import GatewayError
from deepseek_gateway.limits.rules import Limits
from deepseek_gateway.storage.store import Store


class UnknownKeyError(GatewayError):
    """No key has this public id, or it is revoked."""


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key at the one moment when its text is known."""

    text: str
    record: KeyRecord

    def __repr__(self) -> str:
        return f"IssuedKey({self.record.public_id!r})"


@dataclass(frozen=True, slots=True)
class KeyService:
    """Keys of one store, hashed with its pepper. Calls block on the store."""

    store: Store
    pepper: bytes

    def create(
        self,
        name: str,
        *,
        scope: Scope = Scope.INFERENCE,
        models: tuple[str, ...] | None = None,
        limits: Limits | None = None,
        expires: float | None = None,
    ) -> IssuedKey:
        """Issue a key. `expires` is a Unix time."""
        key = new_key()
        record = KeyRecord(
            public_id=key.public_id,
            secret_hash=hash_secret(self.pepper, key),
            name=name,
            scope=scope,
            created=time.time(),
            models=models,
            limits=limits or Limits(),
            expires=expires,
        )
        self.store.keys.insert(record)
        return IssuedKey(key.text, record)

    def rotate(self, public_id: str, grace_s: float) -> IssuedKey:
        """Give a key a new secret; the old one works for `grace_s` more seconds.

        Raises:
            UnknownKeyError: there is no such key, or it is revoked.
        """
        key = new_key(public_id)
        record = self.store.keys.rotate(public_id, hash_secret(self.pepper, key), time.time() + grace_s)
        if record is None:
            raise UnknownKeyError(f"no active key has the id {public_id!r}: see `deepseek-gateway key list`")
        return IssuedKey(key.text, record)

    def revoke(self, public_id: str) -> KeyRecord:
        """End a key for good. Gateways refuse it within their `key_cache_ttl_s`, 5 seconds at most.

        Raises:
            UnknownKeyError: there is no such key.
        """
        record = self.store.keys.revoke(public_id, time.time())
        if record is None:
            raise UnknownKeyError(f"no key has the id {public_id!r}: see `deepseek-gateway key list`")
        return record
