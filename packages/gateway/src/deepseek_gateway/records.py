"""What the gateway keeps, as values: keys and their limits, admissions, ledger rows. No I/O, no clock.

Times are seconds since the epoch (UTC), as `time.time()` gives them.
"""

from dataclasses import dataclass
from typing import Final, Literal

INFERENCE: Final = "inference"
"""The scope that may call models."""
ADMIN: Final = "admin"
"""The scope that may administer the gateway."""
SCOPES: Final = frozenset({INFERENCE, ADMIN})

Accuracy = Literal["exact", "estimated"]
"""`exact`: the engine's own final count. `estimated`: the last count seen before the answer was lost."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None is no limit, 0 is nothing at all."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_month: int | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key without its secret.

    Attributes:
        id: the public id, 12 characters: index, label, and what logs show.
        models: allowed models, each a name or a `prefix*`; empty allows all.
        expires_at: from then on the key is refused; None never.
        revoked_at: when it was revoked; None while it is not.
        previous_secret_until: the end of the grace in which the secret before the last rotation still works.
    """

    id: str
    name: str
    scopes: frozenset[str]
    models: tuple[str, ...]
    limits: Limits
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    previous_secret_until: float | None = None

    def allows_model(self, name: str) -> bool:
        """Whether the key may call this model."""
        return not self.models or any(_matches(pattern, name) for pattern in self.models)

    def is_usable(self, now: float) -> bool:
        """Whether the key is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Admission:
    """A request let in, before anything is sent upstream. A retry on another upstream is the next `attempt`."""

    request_id: str
    attempt: int
    key_id: str
    route: str
    model: str
    created_at: float
    prompt_estimate: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """How one attempt of a request ended: one ledger row, unique by `(request_id, attempt)`.

    Attributes:
        cached_tokens: the part of `prompt_tokens` that the engine's prefix cache answered.
        status: the HTTP status the caller got; 0 if none is known.
        end_reason: stop, length, abort, cancelled, error, upstream_error, refused, recovered.
        created_at: when the request came in; its UTC day and month are the ones billed.
        latency_ms: from the request's arrival to its end.
        ttft_ms: from the request's arrival to its first token; None if there was none.
    """

    request_id: str
    attempt: int
    key_id: str
    route: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    status: int
    end_reason: str
    accuracy: Accuracy
    created_at: float
    latency_ms: float
    ttft_ms: float | None

    @property
    def total_tokens(self) -> int:
        """What is billed."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one key used on one UTC day (`2026-05-31`); the name is empty if the store has no such key."""

    day: str
    key_id: str
    key_name: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    estimated_requests: int

    @property
    def total_tokens(self) -> int:
        """What is billed."""
        return self.prompt_tokens + self.completion_tokens


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
