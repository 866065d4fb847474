"""Look-up of the key that a request carries, cached for a few seconds."""

import asyncio
import contextlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from deepseek_gateway.auth.keys import ApiKey, cache_handle, hash_secret, parse_key
from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.errors import ApiError, StoreUnavailableError
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.store import Store

MAX_CACHED = 10_000
"""Entries at most; unknown keys share the bound, so a flood of guesses cannot grow it."""

MAX_STALE_S = 5.0
"""While the store cannot be read, what it said last counts for so long: no revoked key works on for longer."""
LOOK_UP_S = 10.0
"""Seconds that a look-up may take where nothing is known of the key: a store that hangs does not even refuse."""

STALE_AFTER_S = 0.5
"""Seconds that a store has to answer before what it said last is used."""


@dataclass(frozen=True, slots=True)
class _Entry:
    loaded: float
    record: KeyRecord | None
    valid_until: float | None


class KeyDirectory:
    """Keys by their text.

    Args:
        store: where keys are kept.
        pepper: what their hashes are made with.
        ttl_s: seconds that a look-up stays valid: the longest that a revoked key works on.
        executor: where the store may block.
        monotonic: clock of the cache.
    """

    def __init__(
        self,
        store: Store,
        pepper: bytes,
        ttl_s: float,
        executor: Executor,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._pepper = pepper
        self._ttl_s = ttl_s
        self._executor = executor
        self._monotonic = monotonic
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._loading: dict[bytes, asyncio.Future[_Entry]] = {}

    async def authenticate(self, authorization: str | None) -> KeyRecord:
        """The key of an `Authorization` header.

        Raises:
            ApiError: 401, there is no such key or it is over; 503, the store cannot be read.
        """
        if authorization is None:
            raise _unauthorized("no API key: send `Authorization: Bearer dsk_…`")
        kind, _, text = authorization.partition(" ")
        text = text.strip()
        if kind.lower() != "bearer" or not text:
            raise _unauthorized("the Authorization header is not `Bearer dsk_…`")
        handle = cache_handle(text)
        entry = self._entries.get(handle)
        if entry is None or self._monotonic() - entry.loaded >= self._ttl_s / 2:
            key = parse_key(text)
            if key is None:
                raise _unauthorized(
                    "the API key is malformed, or has a typing error: a whole key is dsk_, 12, 43 and 6 characters, "
                    "the last 6 a checksum of the others"
                )
            entry = await self._entry(handle, key)
        else:
            self._entries.move_to_end(handle)
        return _usable(entry, time.time())

    async def lend(self, public_id: str) -> KeyRecord:
        """The key of a public id, for who administers it and needs no secret.

        Raises:
            ApiError: 401, there is no such key or it is over.
            StoreUnavailableError: the store cannot be read.
        """
        loop = asyncio.get_running_loop()
        record = await loop.run_in_executor(self._executor, self._store.keys.find, public_id)
        return _usable(_Entry(self._monotonic(), record, record.expires if record else None), time.time())

    async def _entry(self, handle: bytes, key: ApiKey) -> _Entry:
        entry = self._entries.get(handle)
        age_s = math.inf if entry is None else self._monotonic() - entry.loaded
        if entry is not None and age_s < self._ttl_s:
            self._entries.move_to_end(handle)
            if age_s >= self._ttl_s / 2:  # a key in steady use never waits: it is read again in time
                self._refresh(handle, key)
            return entry
        loading = self._refresh(handle, key)
        try:
            if entry is not None and age_s < MAX_STALE_S:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(STALE_AFTER_S, MAX_STALE_S - age_s)):
                        return await asyncio.shield(loading)
                if self._monotonic() - entry.loaded < MAX_STALE_S:
                    return entry
            async with asyncio.timeout(LOOK_UP_S):  # a store that is slow is not away; one that hangs is
                return await asyncio.shield(loading)
        except (StoreUnavailableError, TimeoutError) as error:
            if entry is not None and self._monotonic() - entry.loaded < MAX_STALE_S:
                return entry
            raise ApiError(503, "keys cannot be looked up now", headers={"retry-after": "1"}) from error

    def _refresh(self, handle: bytes, key: ApiKey) -> asyncio.Future[_Entry]:
        loading = self._loading.get(handle)
        if loading is None:  # callers of one key wait for one look-up
            loading = asyncio.ensure_future(self._load(handle, key))
            self._loading[handle] = loading
            loading.add_done_callback(lambda done: self._loaded(handle, done))
        return loading

    def _loaded(self, handle: bytes, done: asyncio.Future[_Entry]) -> None:
        self._loading.pop(handle, None)
        if not done.cancelled():
            done.exception()  # seen, also when every caller that waited for it has left

    async def _load(self, handle: bytes, key: ApiKey) -> _Entry:
        # The clock is read before the store: an entry is never taken for newer than its content.
        loaded = self._monotonic()
        loop = asyncio.get_running_loop()
        record = await loop.run_in_executor(self._executor, self._store.keys.find, key.public_id)
        entry = self._verified(loaded, record, key)
        self._entries[handle] = entry
        self._entries.move_to_end(handle)
        while len(self._entries) > MAX_CACHED:
            self._entries.popitem(last=False)
        return entry

    def _verified(self, loaded: float, record: KeyRecord | None, key: ApiKey) -> _Entry:
        given = hash_secret(self._pepper, key)
        if record is None:
            return _Entry(loaded, None, None)
        if hmac.compare_digest(given, record.secret_hash):
            return _Entry(loaded, record, record.expires)
        if record.previous_hash is not None and hmac.compare_digest(given, record.previous_hash):
            ends = [time for time in (record.expires, record.previous_until) if time is not None]
            return _Entry(loaded, record, min(ends))
        return _Entry(loaded, None, None)


def _usable(entry: _Entry, now: float) -> KeyRecord:
    if entry.record is None:
        raise _unauthorized("the API key is unknown")
    record, name = entry.record, f"the API key {entry.record.public_id}"
    if record.revoked is not None:
        raise _unauthorized(f"{name} is revoked")
    if record.expires is not None and now >= record.expires:
        raise _unauthorized(f"{name} is expired")
    if entry.valid_until is not None and now >= entry.valid_until:
        raise _unauthorized(f"{name} has a new secret, and the time that this one had left is over: use the new one")
    if record.disabled is not None:
        raise _unauthorized(f"{name} is disabled")
    if record.owner_disabled is not None:
        raise _unauthorized(f"the {OwnerKind(record.owner_disabled).noun} of {name} is disabled")
    return record


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
