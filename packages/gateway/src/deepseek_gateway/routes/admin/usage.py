"""/admin/usage."""

from dataclasses import asdict
from datetime import UTC, date, datetime, time
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from deepseek_gateway.auth.fields import Id
from deepseek_gateway.errors import ApiError
from deepseek_gateway.routes.admin.answers import UsageAnswer
from deepseek_gateway.routes.admin.operation import AdminCall, AdminOperation
from deepseek_gateway.storage.ledger import DAY_S


class UsageQuery(BaseModel):
    """Which requests count: those for which all that is given holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: Annotated[date, Field(description="first day, UTC")] | None = None
    until: Annotated[date, Field(description="last day, UTC")] | None = None
    key_id: Id | None = None
    org_id: Id | None = None


def _usage(call: AdminCall) -> object:
    query: UsageQuery = call.query
    if not call.by.sees(query.org_id) and query.org_id is not None:
        raise ApiError(422, f"org_id={query.org_id!r}: there is no such organisation", param="org_id")
    since, until = _start(query.since), _start(query.until)
    totals = call.gateway.store.ledger.usage(
        since, None if until is None else until + DAY_S, query.key_id, query.org_id or call.by.org_id
    )
    return {"data": [{**asdict(total), "total_tokens": total.total_tokens} for total in totals]}


def _start(day: date | None) -> float | None:
    return None if day is None else datetime.combine(day, time(), UTC).timestamp()


OPERATIONS: Final = (
    AdminOperation(
        method="GET",
        path="/admin/usage",
        summary="Tokens by day and key",
        query=UsageQuery,
        answer=(UsageAnswer,),
        errors=(422,),
        run=_usage,
    ),
)
