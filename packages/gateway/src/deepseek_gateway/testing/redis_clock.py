"""A link to a real Redis whose scripts read a clock that the test sets."""

import hashlib

from deepseek_gateway.limits.redis_link import RedisLink
from deepseek_gateway.limits.rules import Now
from deepseek_gateway.testing.redis_server import RedisServer

TIMEOUT_S = 5.0
_TIME = "redis.call('TIME')"
_SET_TIME = "redis.call('HMGET', 'test:clock', 's', 'us')"


class ClockedLink(RedisLink):
    """Time stands still until `advance`.

    Args:
        server: the real server.
        start_s: Unix time of the beginning.
    """

    def __init__(self, server: RedisServer, start_s: float, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(server.url, timeout_s)
        self._server = server
        self._start_s = start_s
        self.seconds = 0.0
        texts = {name: text.replace(_TIME, _SET_TIME) for name, (_, text) in self._scripts.items()}
        self._scripts = {name: (hashlib.sha1(text.encode()).hexdigest(), text) for name, text in texts.items()}  # noqa: S324
        self.advance(0.0)

    def clocks(self) -> Now:
        """The gateway's clocks, which go with the server's."""
        return Now(self.seconds, self._start_s + self.seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds
        whole = int(self._start_s + self.seconds)
        self._server.command(f"HSET test:clock s {whole} us {int((self._start_s + self.seconds - whole) * 1e6)}")
