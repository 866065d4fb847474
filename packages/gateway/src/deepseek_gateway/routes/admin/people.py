"""/admin/orgs, /admin/teams and /admin/users."""

from collections.abc import Callable
from typing import Final

from pydantic import BaseModel

from deepseek_gateway.auth.fields import Draft, Id
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.people.service import (
    OrgDraft,
    OwnerChanges,
    TeamDraft,
    UserChanges,
    UserDraft,
)
from deepseek_gateway.routes.admin.answers import OrgAnswer, OrgPage, TeamAnswer, TeamPage, UserAnswer, UserPage
from deepseek_gateway.routes.admin.operation import AdminCall, AdminOperation
from deepseek_gateway.routes.admin.paging import PageQuery, page_of


class OwnerQuery(PageQuery):
    """Which teams or users: of one organisation, or of all."""

    org_id: Id | None = None


def _create_org(call: AdminCall) -> Owner:
    return call.gateway.people.create_org(call.by, call.body)


def _create_team(call: AdminCall) -> Owner:
    return call.gateway.people.create_team(call.by, call.body)


def _create_user(call: AdminCall) -> Owner:
    return call.gateway.people.create_user(call.by, call.body)


def _change_user(call: AdminCall) -> Owner:
    return call.gateway.people.change_user(call.by, call.names["user_id"], call.body)


def _operations(
    kind: OwnerKind,
    *,
    draft: type[Draft],
    create: Callable[[AdminCall], Owner],
    changes: type[Draft],
    answer: type[BaseModel],
    page: type[BaseModel],
    change: Callable[[AdminCall], Owner] | None = None,
) -> tuple[AdminOperation, ...]:
    """All operations on one kind of owner."""
    path, noun, field = f"/admin/{kind.value}s", kind.noun, kind.field
    one, write, is_global = f"{path}/{{{field}}}", Scope.ADMIN_WRITE, kind is OwnerKind.ORG

    def listed(call: AdminCall) -> object:
        query: PageQuery = call.query
        org_id = query.org_id if isinstance(query, OwnerQuery) else None
        owners, after = call.gateway.people.page(call.by, kind, org_id=org_id, after=query.after, limit=query.limit)
        return page_of([owner.to_json() for owner in owners], after)

    def got(call: AdminCall) -> Owner:
        return call.gateway.people.get(call.by, kind, call.names[field])

    def renamed(call: AdminCall) -> Owner:
        return call.gateway.people.rename(call.by, kind, call.names[field], call.body)

    def deleted(call: AdminCall) -> Owner:
        return call.gateway.people.delete(call.by, kind, call.names[field])

    def switched(*, disabled: bool) -> Callable[[AdminCall], Owner]:
        return lambda call: call.gateway.people.set_disabled(call.by, kind, call.names[field], disabled=disabled)

    return (
        AdminOperation(
            method="GET",
            path=path,
            summary=f"{noun.capitalize()}s, page by page",
            query=PageQuery if is_global else OwnerQuery,
            answer=(page,),
            errors=(422,),
            run=listed,
        ),
        AdminOperation(
            method="POST",
            path=path,
            summary=f"Make a new {noun}",
            access=write,
            is_global=is_global,
            body=draft,
            answer=(answer,),
            status=201,
            errors=(409,),
            run=_as_json(create),
        ),
        AdminOperation(
            method="GET", path=one, summary=f"One {noun}", answer=(answer,), errors=(404,), run=_as_json(got)
        ),
        AdminOperation(
            method="PATCH",
            path=one,
            summary=f"Change a {noun}; what is left out stays",
            access=write,
            is_global=is_global,
            body=changes,
            answer=(answer,),
            errors=(404, 409),
            run=_as_json(change or renamed),
        ),
        AdminOperation(
            method="DELETE",
            path=one,
            summary=f"Delete a {noun} that has nothing",
            access=write,
            is_global=is_global,
            answer=(answer,),
            errors=(404, 409),
            run=_as_json(deleted),
        ),
        AdminOperation(
            method="POST",
            path=f"{one}/disable",
            summary="Stop all of its keys",
            access=write,
            is_global=is_global,
            answer=(answer,),
            errors=(404,),
            run=_as_json(switched(disabled=True)),
        ),
        AdminOperation(
            method="POST",
            path=f"{one}/enable",
            summary="Let its keys work again",
            access=write,
            is_global=is_global,
            answer=(answer,),
            errors=(404,),
            run=_as_json(switched(disabled=False)),
        ),
    )


def _as_json(act: Callable[[AdminCall], Owner]) -> Callable[[AdminCall], object]:
    return lambda call: act(call).to_json()


OPERATIONS: Final = (
    *_operations(
        OwnerKind.ORG, draft=OrgDraft, create=_create_org, changes=OwnerChanges, answer=OrgAnswer, page=OrgPage
    ),
    *_operations(
        OwnerKind.TEAM, draft=TeamDraft, create=_create_team, changes=OwnerChanges, answer=TeamAnswer, page=TeamPage
    ),
    *_operations(
        OwnerKind.USER,
        draft=UserDraft,
        create=_create_user,
        changes=UserChanges,
        change=_change_user,
        answer=UserAnswer,
        page=UserPage,
    ),
)
