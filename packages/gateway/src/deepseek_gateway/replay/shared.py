"""Answers in Redis or Valkey: a retry that comes to another gateway gets the one answer too.

Who asks first under an Idempotency-Key claims it for a while, renews the claim while its engine works, and puts the
finished answer there. While the server is away, retries meet their answer at the same gateway only.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import orjson

from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.relay.stages import split_events
from deepseek_gateway.replay.recording import Head, Recording, Terms

logger = logging.getLogger(__name__)

LEASE_S = 15.0
"""How long a claim outlives its gateway."""

STEP_TIMEOUT_S = 1.0
"""What a request with an Idempotency-Key waits for the server: to ask an engine twice costs more than a short wait."""

REST_S = 2.0
"""After a failure the server is left alone for this long: a slow one is worse than none."""

ANSWER_TIMEOUT_S = 2.0
FINISH_TRIES = 3
MAX_CONNECTIONS = 16
WARM_S = 2.0
"""Seconds that a start waits for the server."""

_PREFIX = "dsg:replay:"
WANTED = ":wanted"
# KEYS: an answer's name, that of its request, and the sign that somebody waits for it elsewhere.
_IS_RUNNING = """string.sub(known, 1, 18) == '{"state":"running"'"""
_CLAIM = f"""
local known = redis.call('GET', KEYS[1])
if known and {_IS_RUNNING} then redis.call('SET', KEYS[3], '1', 'PX', ARGV[2]) end
if known then return known end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], KEYS[1], 'PX', ARGV[2])
return false
"""
_RENEW = """
local known = redis.call('GET', KEYS[1])
if known and known ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], KEYS[1], 'PX', ARGV[2])
return 1 + redis.call('EXISTS', KEYS[3])
"""
_OF_REQUEST = f"""
local name = redis.call('GET', KEYS[1])
local known = name and redis.call('GET', name)
if known and {_IS_RUNNING} then redis.call('SET', name .. ARGV[1], '1', 'PX', ARGV[2]) end
return known
"""
_DROP = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end return 1"
_FINISH = """
local known = redis.call('GET', KEYS[1])
if known and known ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SET', KEYS[2], KEYS[1], 'PX', ARGV[3])
redis.call('SADD', KEYS[4], KEYS[1])
redis.call('PEXPIRE', KEYS[4], ARGV[3])
return 1
"""
_FORGET = """
local dropped = 0
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do dropped = dropped + redis.call('DEL', name) end
redis.call('DEL', KEYS[1])
return dropped
"""


@dataclass(frozen=True, slots=True)
class Shared:
    """What stands under an Idempotency-Key. `status` is 0 for an answer that was too large to be kept."""

    state: Literal["running", "finished"]
    digest: bytes
    request_id: str
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    terms: Terms = field(default_factory=Terms)

    def load_into(self, recording: Recording) -> None:
        """Make a recording of it; its events keep the numbers that they have."""
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers]
        head = Head(self.status, [*headers, (b"x-replay-of", self.request_id.encode())])
        recording.load(head, split_events(self.body) if head.is_stream else [self.body])


@dataclass(frozen=True, slots=True)
class Parting:
    """What is left to be told of an answer that is over."""

    script: str
    keys: list[str]
    arguments: list[Any]


class SharedAnswers:
    """The answers that several gateways share.

    Args:
        url: of the server, as redis-py reads it.
        timeout_s: seconds for a small step, `STEP_TIMEOUT_S` at least.
        ttl_s: seconds that an answer is kept.

    Raises:
        ConfigurationError: the client is not installed.
    """

    def __init__(self, url: str, timeout_s: float, ttl_s: float) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool, Redis  # an extra
            from redis.exceptions import RedisError
        except ImportError as error:
            message = "GATEWAY_REDIS_URL needs an extra: pip install 'deepseek-gateway[redis]'"
            raise ConfigurationError(message) from error
        # `_ask` has the time limit; the client's own can swallow a cancellation (see `limits.redis_link`).
        # A pool that does not wait would take many retries at once for a server that is away.
        limits = {"max_connections": MAX_CONNECTIONS, "timeout": ANSWER_TIMEOUT_S}
        pool = BlockingConnectionPool.from_url(url, socket_timeout=None, socket_connect_timeout=WARM_S, **limits)
        self._client: Any = Redis(connection_pool=pool)
        self._errors = (RedisError, OSError, TimeoutError)
        self._timeout_s = max(timeout_s, STEP_TIMEOUT_S)
        self._ttl_ms = int(ttl_s * 1000)
        self._rests_until_s = 0.0

    async def warm(self) -> None:
        """Connect, if the server is there, before a request waits for it."""
        with contextlib.suppress(*self._errors):
            async with asyncio.timeout(WARM_S):
                await self._client.ping()

    async def claim(self, name: str, recording: Recording) -> Shared | None:
        """Claim a name for a recording; gives what is there instead, or None: the name is ours, or the server away."""
        arguments = [_running(recording), int(LEASE_S * 1000)]
        known = await self._eval(_CLAIM, _names(name, recording), arguments)
        return _read(known) if isinstance(known, bytes) else None

    async def renew(self, name: str, recording: Recording) -> bool:
        """Say that the engine still works, or that it does at last, if the claim could not be made.

        Returns:
            Whether the server took it. An answer that somebody waits for at another gateway goes on.
        """
        said = await self._eval(_RENEW, _names(name, recording), [_running(recording), int(LEASE_S * 1000)])
        if said == 2:
            recording.go_on()
        return said is not None

    def parting(self, name: str, recording: Recording, *, is_kept: bool) -> Parting:
        """What puts a finished answer under its name, or gives the name free; for `finish`."""
        if not is_kept:
            return Parting(_DROP, _names(name, recording), [_running(recording)])
        keys = [*_names(name, recording), _key_name(recording.key_id)]
        return Parting(_FINISH, keys, [_running(recording), _finished(recording), self._ttl_ms])

    async def finish(self, parting: Parting) -> None:
        """Tell the server; a few times, if it is away for a moment."""
        for _ in range(FINISH_TRIES):
            if await self._eval(parting.script, parting.keys, parting.arguments, ANSWER_TIMEOUT_S) is not None:
                return
            await asyncio.sleep(REST_S)

    async def forget(self, key_id: str) -> int | None:
        """Drop all finished answers of a key; gives how many, or None while the server is away."""
        dropped = await self._eval(_FORGET, [_key_name(key_id)], [], ANSWER_TIMEOUT_S)
        return None if dropped is None else int(dropped)

    async def of_request(self, key_id: str, request_id: str) -> Shared | None:
        """The answer of a request of this key's, finished or running at another gateway."""
        arguments = [WANTED, int(LEASE_S * 1000)]
        known = await self._eval(_OF_REQUEST, [request_name(key_id, request_id)], arguments, ANSWER_TIMEOUT_S)
        return _read(known) if isinstance(known, bytes) else None

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _eval(self, script: str, keys: list[str], arguments: list[Any], timeout_s: float | None = None) -> Any:
        return await self._ask(self._client.eval(script, len(keys), *keys, *arguments), timeout_s or self._timeout_s)

    async def _ask(self, asking: Awaitable[Any], timeout_s: float) -> Any:
        """The server's answer; None when it has none in time."""
        if time.monotonic() < self._rests_until_s:
            if asyncio.iscoroutine(asking):
                asking.close()
            return None
        try:
            async with asyncio.timeout(timeout_s):
                return await asking
        except self._errors as error:
            self._rests_until_s = time.monotonic() + REST_S
            logger.warning("Redis does not answer, retries meet their answer at one gateway only: %r", error)
            return None


def idempotent_name(key_id: str, idempotency_key: str) -> str:
    """Where an answer stands; callers' own words stay out of the server."""
    return _PREFIX + hashlib.sha256(f"{key_id}\0{idempotency_key}".encode()).hexdigest()


def request_name(key_id: str, request_id: str) -> str:
    """Where the name of a request's answer stands."""
    return f"{_PREFIX}of:" + hashlib.sha256(f"{key_id}\0{request_id}".encode()).hexdigest()


def _names(name: str, recording: Recording) -> list[str]:
    return [name, request_name(recording.key_id, recording.request_id), name + WANTED]


def _key_name(key_id: str) -> str:
    """Where the names of a key's answers stand."""
    return f"{_PREFIX}by:" + hashlib.sha256(key_id.encode()).hexdigest()


def _running(recording: Recording) -> bytes:
    return orjson.dumps({"state": "running", **_about(recording)})


def _about(recording: Recording) -> dict[str, Any]:
    terms = {"model": recording.terms.model, "list_version": recording.terms.list_version}
    return {"digest": recording.digest.hex(), "request_id": recording.request_id, **terms}


def _finished(recording: Recording) -> bytes:
    head = recording.head
    assert head is not None
    fields: dict[str, Any] = {
        "state": "finished",
        **_about(recording),
        "status": head.status if recording.is_kept_whole else 0,
        "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers],
    }
    body = b"".join(recording.pieces()) if recording.is_kept_whole else b""
    return orjson.dumps(fields) + b"\n" + body


def _read(stored: bytes) -> Shared | None:
    line, _, body = stored.partition(b"\n")
    try:
        fields = cast("dict[str, Any]", orjson.loads(line))
        headers = tuple((str(name), str(value)) for name, value in fields.get("headers", ()))
        return Shared(
            fields["state"],
            bytes.fromhex(fields["digest"]),
            fields["request_id"],
            fields.get("status", 0),
            headers,
            body,
            Terms(fields.get("model"), fields.get("list_version", "")),
        )
    except (ValueError, KeyError, TypeError):
        return None
