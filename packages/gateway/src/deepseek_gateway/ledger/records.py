"""The values that the ledger keeps."""

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Literal

from deepseek_gateway.audit.trail import NO_TRAIL, Trail

Status = Literal["finished", "cancelled", "failed"]
Accuracy = Literal["exact", "estimated"]


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of one request.

    `cached` is the part of `prompt` that the prefix cache held, `reasoning` the part of `completion` that was thought.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion together: what is billed."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that was let in: what the journal knows before anything happened. `created` is Unix time.

    `client_request_id` is the caller's own name for it; the versions are what was in force.
    """

    request_id: str
    key_id: str
    route: str
    model: str | None
    stream: bool
    created: float
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    client_request_id: str | None = None
    policy_version: str = ""
    list_version: str = ""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """How a request ended. Field names are the columns of the store.

    `attempt` is the number of the upstream attempt that answered, from 1. `end_reason` is the finish_reason of a
    finished request, else what ended it. `http_status` is what the caller got; 499 when it was not there to get it.
    `cost_nano` is by the price `price_version`; None where the model has no price. `model` is the caller's name,
    `served_model` the name at the engine that answered, or was tried last.
    """

    request_id: str
    attempt: int
    key_id: str
    route: str
    model: str | None
    upstream: str | None
    stream: bool
    status: Status
    end_reason: str
    http_status: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    accuracy: Accuracy
    latency_ms: float
    ttft_ms: float | None
    created: float
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    reasoning_tokens: int = 0
    cost_nano: int = 0
    price_version: str | None = None
    served_model: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Values by name; `dataclasses.asdict` would copy each of them, at ten times the cost."""
        return dict(zip(ROW_FIELDS, _row_values(self), strict=True))

    @property
    def tokens(self) -> TokenCounts:
        """What it used."""
        return TokenCounts(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.reasoning_tokens)

    @property
    def account(self) -> str:
        """Who pays."""
        return account_of(self.org_id, self.key_id)


ROW_FIELDS = tuple(field.name for field in fields(LedgerRow))
_row_values = attrgetter(*ROW_FIELDS)


def account_of(org_id: str | None, key_id: str) -> str:
    """Who pays: the organisation, or the key where there is none."""
    return f"key:{key_id}" if org_id is None else f"org:{org_id}"


@dataclass(frozen=True, slots=True)
class Settled:
    """A request that is over: its row, and what else its life tells."""

    row: LedgerRow
    trail: Trail = NO_TRAIL
