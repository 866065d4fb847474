"""What the journal says about requests whose process died."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

from deepseek_gateway.audit.trail import Trail
from deepseek_gateway.ledger.records import Admission, LedgerRow, Settled, TokenCounts

CRASHED = "gateway_crash"

_ADMISSION = tuple(field.name for field in fields(Admission))
_admission_values = attrgetter(*_ADMISSION)


@dataclass(frozen=True, slots=True)
class Observation:
    """The tokens of a running request, as last journaled."""

    attempt: int
    tokens: TokenCounts
    at: float


def admit_record(admission: Admission) -> dict[str, Any]:
    """The journal's form of an admission."""
    return {"kind": "admit", **dict(zip(_ADMISSION, _admission_values(admission), strict=True))}


def observe_record(request_id: str, seen: Observation) -> dict[str, Any]:
    """The journal's form of an observation."""
    counts = seen.tokens
    tokens = {"prompt": counts.prompt, "completion": counts.completion, "cached": counts.cached}
    tokens["reasoning"] = counts.reasoning
    return {"kind": "observe", "request_id": request_id, "attempt": seen.attempt, "at": seen.at, "tokens": tokens}


def settle_record(settled: Settled) -> dict[str, Any]:
    """The journal's form of a request that is over; orjson writes the dataclasses in it."""
    return {"kind": "settle", **settled.row.to_dict(), "trail": settled.trail}


PriceRow = Callable[[LedgerRow], LedgerRow]
"""Puts the cost on a row."""


def recovered(records: Iterable[dict[str, Any]], price: PriceRow = lambda row: row) -> list[Settled]:
    """What belongs into the store: settled requests as they were settled, and orphans at what was last seen of them.

    An orphan was admitted and never settled: its process died. It is billed what the caller may have received, as far
    as the journal saw it, and marked `estimated`.
    """
    admitted: dict[str, Admission] = {}
    seen: dict[str, Observation] = {}
    settled: dict[tuple[str, int], Settled] = {}
    for record in records:
        values = dict(record)
        kind = values.pop("kind")
        if kind == "admit":
            admission = Admission(**values)
            admitted[admission.request_id] = admission
        elif kind == "observe":
            tokens = TokenCounts(**values["tokens"])
            seen[values["request_id"]] = Observation(values["attempt"], tokens, values["at"])
        else:
            trail = Trail.from_json(values.pop("trail", {}))
            row = LedgerRow(**values)
            settled[row.request_id, row.attempt] = Settled(row, trail)
    for request_id, _ in settled:
        admitted.pop(request_id, None)
    orphans = (Settled(price(_orphan(each, seen.get(key))), _trail(each)) for key, each in admitted.items())
    return [*settled.values(), *orphans]


def _trail(admission: Admission) -> Trail:
    return Trail(admission.client_request_id, admission.policy_version, admission.list_version)


def _orphan(admission: Admission, seen: Observation | None) -> LedgerRow:
    row = LedgerRow(
        request_id=admission.request_id,
        attempt=1,
        key_id=admission.key_id,
        route=admission.route,
        model=admission.model,
        upstream=None,
        stream=admission.stream,
        status="failed",
        end_reason=CRASHED,
        http_status=499,
        prompt_tokens=0,
        completion_tokens=0,
        cached_tokens=0,
        accuracy="estimated",
        latency_ms=0.0,
        ttft_ms=None,
        created=admission.created,
        org_id=admission.org_id,
        team_id=admission.team_id,
        user_id=admission.user_id,
    )
    if seen is None:
        return row
    return replace(
        row,
        attempt=seen.attempt,
        prompt_tokens=seen.tokens.prompt,
        completion_tokens=seen.tokens.completion,
        cached_tokens=seen.tokens.cached,
        reasoning_tokens=seen.tokens.reasoning,
        latency_ms=max(0.0, (seen.at - admission.created) * 1000),
    )
