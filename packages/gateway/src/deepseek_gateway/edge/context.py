"""What is known about one HTTP request while it runs; each layer adds what it learns."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import Scope

from deepseek_gateway.audit.trail import MAX_STEPS, Step
from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.edge.error_shape import OPENAI_ERRORS, ErrorShape
from deepseek_gateway.edge.request_ids import new_request_id
from deepseek_gateway.edge.traceparent import TraceParent
from deepseek_gateway.ledger.records import TokenCounts

if TYPE_CHECKING:
    from deepseek_gateway.audit.keeper import Keeping

STATE_KEY = "deepseek_gateway.request"
HEADERS_KEY = "deepseek_gateway.headers"


@dataclass(slots=True)
class RequestContext:
    """One request, for the access log and the metrics.

    `route` is a template, never the caller's path. `errors` is how its dialect writes errors. `lent_key`
    is the key that a signed-in administrator lends to a request from the playground; nothing else sets it.
    `client_request_id` is the caller's own name for the request. With `is_traced` a request is kept also when refused,
    if its key is known; `keeping` is there where its texts are kept. `span` is this request in its trace, which
    the engine's will be below.
    """

    request_id: str = field(default_factory=new_request_id)
    route: str = "other"
    key_id: str | None = None
    org_id: str | None = None
    model: str | None = None
    status: int = 0
    outcome: str = "-"
    tokens: TokenCounts | None = None
    started_s: float = field(default_factory=time.perf_counter)
    ttft_ms: float | None = None
    errors: ErrorShape = OPENAI_ERRORS
    lent_key: KeyRecord | None = None
    client_request_id: str | None = None
    policy_version: str = ""
    list_version: str = ""
    steps: list[Step] = field(default_factory=list)
    is_traced: bool = False
    body_bytes: int = 0
    span: TraceParent | None = None
    keeping: "Keeping | None" = None

    def elapsed_ms(self) -> float:
        """Milliseconds since the request came."""
        return (time.perf_counter() - self.started_s) * 1000

    def note(self, name: str, detail: str = "") -> None:
        """Note a step for the request's trace: how long it queued, what the word filter found."""
        if len(self.steps) < MAX_STEPS:
            self.steps.append(Step(name, round(self.elapsed_ms(), 3), detail[:300]))


def context_of(scope: Scope) -> RequestContext:
    """The context that the app put into an ASGI scope."""
    return scope[STATE_KEY]


def credential(scope: Scope) -> str | None:
    """What a caller shows for itself, as an `Authorization` header; `x-api-key` counts as a bearer key."""
    given = header(scope, b"authorization")
    if given is None and (key := header(scope, b"x-api-key")) is not None:
        return f"Bearer {key}"
    return given


def header(scope: Scope, name: bytes) -> str | None:
    """A request header, by its lower-case name; the first if there are several."""
    value = headers_of(scope).get(name)
    return None if value is None else value.decode("latin-1")


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """A request's headers by their lower-case names; the first of each."""
    known = scope.get(HEADERS_KEY)
    if known is None:
        known = scope[HEADERS_KEY] = dict(reversed(scope["headers"]))
    return known
