"""/admin/audit and /admin/requests: who did what, and what became of a request."""

from dataclasses import asdict
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from deepseek_gateway.audit.service import MAX_PAGE, AuditService, TraceService
from deepseek_gateway.auth.fields import Id
from deepseek_gateway.routes.admin.audit_answers import AuditPage, HeadAnswer, LifeList, TraceAnswer
from deepseek_gateway.routes.admin.operation import AdminCall, AdminOperation
from deepseek_gateway.storage.audit import AuditFilter

_MAX_SEQUENCE: Final = 2**62

Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
UnixTime = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False, description="Unix time")]
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE)]


class AuditQuery(BaseModel):
    """Which entries: those for which all that is given holds; `action` may end in `*`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    actor: Word | None = None
    action: Word | None = None
    subject: Word | None = None
    request_id: Word | None = None
    since: UnixTime | None = None
    until: UnixTime | None = None
    before: Annotated[int, Field(ge=0, le=_MAX_SEQUENCE, description="the last sequence of the page before")] | None = (
        None
    )
    limit: Limit = 50


class LifeQuery(BaseModel):
    """Which requests: by the caller's own X-Request-ID, else of one key or of all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    client_request_id: Word | None = None
    key_id: Id | None = None
    before: Annotated[UnixTime, Field(description="`created` of the page before's last one")] | None = None
    limit: Limit = 50


def _audit(call: AdminCall) -> object:
    query: AuditQuery = call.query
    wanted = AuditFilter(**query.model_dump(exclude={"before", "limit"}))
    entries = AuditService(call.gateway.store).page(call.by, wanted, before=query.before, limit=query.limit)
    return {"data": [entry.to_json() for entry in entries]}


def _head(call: AdminCall) -> object:
    return asdict(AuditService(call.gateway.store).head(call.by))


def _requests(call: AdminCall) -> object:
    query: LifeQuery = call.query
    return {"data": TraceService(call.gateway.store).search(call.by, **query.model_dump())}


def _request(call: AdminCall) -> object:
    return TraceService(call.gateway.store).find(call.by, call.names["request_id"])


OPERATIONS: Final = (
    AdminOperation(
        method="GET",
        path="/admin/audit",
        summary="The audit log, the newest entries first",
        is_global=True,
        query=AuditQuery,
        answer=(AuditPage,),
        errors=(422,),
        run=_audit,
    ),
    AdminOperation(
        method="GET",
        path="/admin/audit/head",
        summary="Where the audit log ends: to keep elsewhere, for `audit verify --heads`",
        is_global=True,
        answer=(HeadAnswer,),
        run=_head,
    ),
    AdminOperation(
        method="GET",
        path="/admin/requests",
        summary="Lives of requests, the newest first",
        query=LifeQuery,
        answer=(LifeList,),
        errors=(422,),
        run=_requests,
    ),
    AdminOperation(
        method="GET",
        path="/admin/requests/{request_id}",
        summary="One request from its key to its end: versions in force, tries at engines, tokens, times",
        answer=(TraceAnswer,),
        errors=(404,),
        run=_request,
    ),
)
