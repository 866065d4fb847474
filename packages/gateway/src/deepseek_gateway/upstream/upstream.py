"""One engine: whether it is up, how busy it is, which models it serves."""

import enum
import logging
from dataclasses import dataclass, field

from deepseek_gateway.upstream.client import UpstreamClient

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5


class Health(enum.Enum):
    """`HALF_OPEN`: the back-off is over, and one request is trying."""

    UP = "up"
    DOWN = "down"
    HALF_OPEN = "half_open"


@dataclass(slots=True, eq=False)
class Upstream:
    """State of one engine. It counts as up until something says otherwise; times are monotonic."""

    client: UpstreamClient
    max_backoff_s: float
    health: Health = Health.UP
    in_flight: int = 0
    models: tuple[str, ...] = ()
    retry_at_s: float = 0.0
    failures: int = field(default=0)

    @property
    def name(self) -> str:
        """Its URL: what logs, metrics and the ledger call it."""
        return self.client.address.url

    @property
    def is_up(self) -> bool:
        """Whether it takes traffic."""
        return self.health is Health.UP

    def may_try(self, now_s: float) -> bool:
        """Whether a request may go to it: it is up, or down for long enough that one request may try."""
        return self.is_up or (self.health is Health.DOWN and now_s >= self.retry_at_s)

    def begin(self) -> None:
        """Count a request that goes to it."""
        self.in_flight += 1
        if self.health is Health.DOWN:
            self.health = Health.HALF_OPEN

    def end(self) -> None:
        """Count a request that is over."""
        self.in_flight -= 1

    def succeeded(self) -> None:
        """It answered: it is up."""
        if not self.is_up:
            logger.info("upstream %s is up", self.name)
        self.health, self.failures = Health.UP, 0

    def failed(self, reason: str, now_s: float, retry_after_s: float | None = None) -> None:
        """It did not: leave it alone, for twice as long each time."""
        if self.is_up:
            logger.warning("upstream %s is down: %s", self.name, reason)
        backoff_s = min(FIRST_BACKOFF_S * 2 ** min(self.failures, 16), self.max_backoff_s)
        if retry_after_s is not None:
            backoff_s = min(max(backoff_s, retry_after_s), self.max_backoff_s)
        self.health, self.retry_at_s = Health.DOWN, now_s + backoff_s
        self.failures += 1

    def gave_up(self) -> None:
        """The request that was trying ended without telling whether it is up: let another try."""
        if self.health is Health.HALF_OPEN:
            self.health = Health.DOWN
