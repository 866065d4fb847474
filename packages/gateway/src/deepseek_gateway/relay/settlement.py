"""How one admitted request ends in the books: exactly once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_gateway.audit.trail import Trail
from deepseek_gateway.edge.context import RequestContext
from deepseek_gateway.ledger.ledger import Ledger
from deepseek_gateway.ledger.records import Accuracy, Admission, LedgerRow, Status, TokenCounts
from deepseek_gateway.limits.rules import Subject
from deepseek_gateway.metrics import GatewayMetrics
from deepseek_gateway.relay.allowance import Allowance
from deepseek_gateway.upstream.attempts import Attempt


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of a request."""

    status: Status
    reason: str
    http_status: int


@dataclass(slots=True)
class Settlement:
    """Journals, returns the reservation, counts, and tells the access log."""

    ledger: Ledger
    metrics: GatewayMetrics
    allowance: Allowance
    admission: Admission
    context: RequestContext
    is_settled: bool = False

    def observe(self, attempt: int, tokens: TokenCounts) -> bool:
        """Note what a running stream has used; False when it is too early for another note."""
        return not self.is_settled and self.ledger.observe(self.admission.request_id, attempt, tokens)

    def settle(
        self,
        ending: Ending,
        tokens: TokenCounts,
        accuracy: Accuracy,
        attempt: int,
        upstream: str | None,
        attempts: Sequence[Attempt] = (),
    ) -> None:
        """End the request. A second call does nothing."""
        if self.is_settled:
            return
        self.is_settled = True
        admission, context = self.admission, self.context
        row = LedgerRow(
            request_id=admission.request_id,
            attempt=max(1, attempt),
            key_id=admission.key_id,
            route=admission.route,
            model=admission.model,
            upstream=upstream,
            stream=admission.stream,
            status=ending.status,
            end_reason=ending.reason,
            http_status=ending.http_status,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cached_tokens=tokens.cached,
            accuracy=accuracy,
            latency_ms=context.elapsed_ms(),
            ttft_ms=context.ttft_ms,
            created=admission.created,
            org_id=admission.org_id,
            team_id=admission.team_id,
            user_id=admission.user_id,
            reasoning_tokens=tokens.reasoning,
            cost_nano=self.allowance.cost_nano(tokens),
            price_version=None if self.allowance.price is None else self.allowance.price.version,
            served_model=next((each.model for each in reversed(attempts) if each.upstream == upstream), None),
        )
        self.ledger.settle(row, self._trail(attempts))
        self.allowance.settle(tokens)
        self.metrics.settled(row)
        context.tokens, context.outcome = tokens, ending.status

    def _trail(self, attempts: Sequence[Attempt]) -> Trail:
        context = self.context
        kept = tuple([attempt.copy() for attempt in attempts])
        return Trail(
            *(context.client_request_id, context.policy_version, context.list_version),
            *(kept, tuple(context.steps), context.keeping is not None),
        )


def admission_of(context: RequestContext, subject: Subject, *, stream: bool) -> Admission:
    """The admission of the request at hand, now."""
    return Admission(
        *(context.request_id, subject.key_id, context.route, context.model, stream, time.time()),
        *(subject.org_id, subject.team_id, subject.user_id),
        *(context.client_request_id, context.policy_version, context.list_version),
    )
