"""What /admin/audit, /admin/requests and /admin/payload… answer."""

from typing import Any

from pydantic import Field

from deepseek_gateway.routes.admin.answers import Answer


class EntryAnswer(Answer):
    """An entry of the audit log; `before` and `after` are JSON texts, as the hash has them."""

    sequence: int
    at: float
    actor: str
    action: str
    subject: str
    before: str | None
    after: str | None
    request_id: str | None
    policy_version: str
    list_version: str
    previous_hash: str
    hash: str


class AuditPage(Answer):
    """Entries, the newest first."""

    data: list[EntryAnswer]


class HeadAnswer(Answer):
    """The newest entry; `seal` is an HMAC that only who has the pepper can make."""

    sequence: int
    hash: str
    seal: str


class AttemptAnswer(Answer):
    """A try at an engine; `id` is what the engine's own log knows it by."""

    number: int
    upstream: str
    id: str
    began_ms: float
    took_ms: float | None
    status: int | None
    fault: str | None
    model: str | None


class StepAnswer(Answer):
    """Something that happened on the way."""

    name: str
    at_ms: float
    detail: str


class RefusalAnswer(Answer):
    """Why a request was not admitted."""

    route: str
    model: str | None
    status: int
    code: str | None
    message: str


class LifeAnswer(Answer):
    """One request: `ledger` where it was admitted, else `refusal`."""

    request_id: str
    client_request_id: str | None
    key_id: str
    org_id: str | None
    created: float
    node: str
    policy_version: str
    list_version: str
    ledger: dict[str, Any] | None = Field(description="its row of the ledger")
    refusal: RefusalAnswer | None
    attempts: list[AttemptAnswer]
    steps: list[StepAnswer]
    is_kept: bool


class LifeList(Answer):
    """Lives, the newest first."""

    data: list[LifeAnswer]


class KeptAnswer(Answer):
    """That a request's texts are kept, and until when."""

    subject: str
    created: float
    expires: float
    is_masked: bool
    bytes: int


class TraceAnswer(LifeAnswer):
    """A life with what belongs to it: administrative acts that came by the request, and whether its texts are kept."""

    acts: list[EntryAnswer]
    payload: KeptAnswer | None


class PolicyAnswer(Answer):
    """Whose texts are kept."""

    kind: str
    id: str
    days: int
    mask_pii: bool


class PolicyList(Answer):
    """All policies."""

    data: list[PolicyAnswer]


class TextsAnswer(Answer):
    """What was asked and answered in a request."""

    request_id: str
    subject: str
    created: float
    expires: float
    is_masked: bool
    request: Any
    answer: Any
    is_truncated: bool


class ProofAnswer(Answer):
    """Proof of an erasure, for `erase --check`."""

    subject: str
    erased: float
    payloads: int
    sha256: str
    data_key_sha256: str | None
    answers_dropped_within_s: float = Field(
        description="until then every running gateway has dropped what it kept for retries, and says so in the log"
    )
    entry: int
    entry_hash: str
