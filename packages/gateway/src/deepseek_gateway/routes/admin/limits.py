"""/admin/limits and /admin/limit-events."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from deepseek_gateway.auth.records import Scope
from deepseek_gateway.limits.drafts import KindName, LimitDraft, event_json, rule_json
from deepseek_gateway.routes.admin.answers import Answer
from deepseek_gateway.routes.admin.operation import AdminCall, AdminOperation

Amount = Annotated[int | str, Field(description="of money a decimal")]


class LimitAnswer(Answer):
    """A rule."""

    id: str
    kind: KindName
    limit: Amount
    org_id: str | None
    team_id: str | None
    user_id: str | None
    key_id: str | None
    model: str | None
    time_zone: str
    soft: bool
    on_failure: Literal["deny", "share"]
    created: float


class LimitList(Answer):
    """All rules, the oldest first."""

    data: list[LimitAnswer]


class LimitEventAnswer(Answer):
    """A soft limit that was reached: once a window and counter."""

    rule_id: str
    counter: str
    since: float
    kind: KindName
    amount: Amount
    taken: Amount
    org_id: str | None
    team_id: str | None
    user_id: str | None
    key_id: str | None
    model: str | None
    request_id: str
    created: float


class LimitEventList(Answer):
    """Events, the newest first."""

    data: list[LimitEventAnswer]


class EventQuery(BaseModel):
    """How many."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(ge=1, le=1000)] = 50


def _list(call: AdminCall) -> object:
    return {"data": [rule_json(rule) for rule in call.gateway.limits.all(call.by)]}


def _create(call: AdminCall) -> object:
    return rule_json(call.gateway.limits.set(call.by, call.body))


def _get(call: AdminCall) -> object:
    return rule_json(call.gateway.limits.get(call.by, call.names["limit_id"]))


def _replace(call: AdminCall) -> object:
    return rule_json(call.gateway.limits.set(call.by, call.body, call.names["limit_id"]))


def _delete(call: AdminCall) -> object:
    return rule_json(call.gateway.limits.remove(call.by, call.names["limit_id"]))


def _events(call: AdminCall) -> object:
    query: EventQuery = call.query
    return {"data": [event_json(event) for event in call.gateway.limits.events(call.by, query.limit)]}


ONE: Final = "/admin/limits/{limit_id}"
OPERATIONS: Final = (
    AdminOperation(method="GET", path="/admin/limits", summary="All limits", answer=(LimitList,), run=_list),
    AdminOperation(
        method="POST",
        path="/admin/limits",
        summary="Set a limit",
        access=Scope.ADMIN_WRITE,
        is_global=True,
        body=LimitDraft,
        answer=(LimitAnswer,),
        status=201,
        run=_create,
    ),
    AdminOperation(
        method="GET",
        path="/admin/limit-events",
        summary="Soft limits that were reached",
        query=EventQuery,
        answer=(LimitEventList,),
        errors=(422,),
        run=_events,
    ),
    AdminOperation(method="GET", path=ONE, summary="One limit", answer=(LimitAnswer,), errors=(404,), run=_get),
    AdminOperation(
        method="PUT",
        path=ONE,
        summary="Put another limit in the place of this one",
        access=Scope.ADMIN_WRITE,
        is_global=True,
        body=LimitDraft,
        answer=(LimitAnswer,),
        errors=(404,),
        run=_replace,
    ),
    AdminOperation(
        method="DELETE",
        path=ONE,
        summary="Remove a limit",
        access=Scope.ADMIN_WRITE,
        is_global=True,
        answer=(LimitAnswer,),
        errors=(404,),
        run=_delete,
    ),
)
