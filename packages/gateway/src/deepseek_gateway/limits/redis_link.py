"""The connection to Redis or Valkey: scripts by their hash, a short timeout, and a breaker."""

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, cast

from deepseek_gateway.config.secrets import ESCAPES, without_values
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.limits.redis_steps import GATEWAYS

logger = logging.getLogger(__name__)

FAILURES_TO_OPEN = 5
MAX_CONNECTIONS = 64
WARM_S = 2.0
"""Seconds that a start waits for the server."""

WARM_CONNECTIONS = 4
SCRIPTS = ("admit", "extend", "settle", "register", "renew", "beat")


class RedisUnavailableError(Exception):
    """No answer in time, or none at all."""


class RedisLink:
    """Runs the limiter's scripts. A slow server is worse than a dead one: after five failures only probes go out.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads it.
        timeout_s: seconds for one step, connecting included.

    Raises:
        ConfigurationError: the client is not installed, or the URL is none.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool, Redis  # an extra, and 160 ms of import
            from redis.backoff import NoBackoff
            from redis.exceptions import NoScriptError, RedisError
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigurationError(
                "GATEWAY_REDIS_URL needs an extra: pip install 'deepseek-gateway[redis]'"
            ) from error
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=timeout_s,
                # `run` has the time limit. The client would write under `asyncio.wait_for`, which before Python 3.12
                # swallows a cancellation that comes just as the write is done: a loop that is cancelled would go on.
                socket_timeout=None,
                socket_connect_timeout=WARM_S,  # `warm` may take its time; steps are bound as a whole
                retry=cast("Any", Retry(NoBackoff(), 0)),  # what failed is answered by policy, not tried again
                decode_responses=True,
            )
        except ValueError as error:
            raise ConfigurationError(f"GATEWAY_REDIS_URL: {without_values(error)}: {ESCAPES}") from None
        self._client = Redis(connection_pool=pool)
        self._errors = (RedisError, OSError, TimeoutError)
        self._no_script = NoScriptError
        self._scripts = load_scripts()
        self._failures = 0
        self.timeout_s = timeout_s
        self.failure: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether only probes go out."""
        return self._failures >= FAILURES_TO_OPEN

    async def run(
        self, script: str, keys: Sequence[str], arguments: Sequence[str | int], *, is_probe: bool = False
    ) -> list[str]:
        """Run one step.

        Raises:
            RedisUnavailableError: no answer; whether the step was done is unknown.
        """
        if self.is_open and not is_probe:
            raise RedisUnavailableError(self.failure or "unavailable")
        digest, text = self._scripts[script]
        try:
            async with asyncio.timeout(self.timeout_s):
                try:
                    reply: Any = await cast("Any", self._client.evalsha(digest, len(keys), *keys, *arguments))
                except self._no_script:
                    reply = await cast("Any", self._client.eval(text, len(keys), *keys, *arguments))
        except self._errors as error:
            self._failed(error)
            raise RedisUnavailableError(str(error)) from error
        if self._failures:
            logger.warning("Redis answers again")
        self._failures, self.failure = 0, None
        return cast("list[str]", reply)

    async def warm(self) -> bool:
        """Connect and have the server know the scripts, before requests wait for it; False when it is not there.

        What comes at a start (a name to look up, TLS, a server that wakes) does not fit into a step's time.
        """
        try:
            async with asyncio.timeout(WARM_S):
                for _, text in self._scripts.values():
                    await cast("Any", self._client.script_load(text))
                await asyncio.gather(*(cast("Any", self._client.ping()) for _ in range(WARM_CONNECTIONS)))
        except self._errors as error:
            self._failed(error)
            return False
        return True

    async def memory(self) -> str | None:
        """The name of the server's memory; None where no gateway counts in it.

        Raises:
            RedisUnavailableError: it does not answer.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                return cast("str | None", await cast("Any", self._client.get(f"{GATEWAYS}epoch")))
        except self._errors as error:
            raise RedisUnavailableError(str(error) or type(error).__name__) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        self.failure = f"{type(error).__name__}: no answer within {self.timeout_s * 1000:.0f} ms or no connection"
        if self._failures in {1, FAILURES_TO_OPEN}:
            logger.warning("Redis does not answer (%d in a row): %s", self._failures, str(error) or self.failure)


def load_scripts() -> dict[str, tuple[str, str]]:
    """Each step's SHA-1, by which the server knows it, and text."""
    folder = files("deepseek_gateway.limits").joinpath("lua")
    common = folder.joinpath("common.lua").read_text("utf-8")
    texts = {name: f"{common}\n{folder.joinpath(f'{name}.lua').read_text('utf-8')}" for name in SCRIPTS}
    return {name: (hashlib.sha1(text.encode()).hexdigest(), text) for name, text in texts.items()}  # noqa: S324
