"""/admin/usage."""

from typing import Annotated, Final

from pydantic import Field

from deepseek_gateway.auth.records import Scope
from deepseek_gateway.errors import ApiError, StoreSlowError
from deepseek_gateway.routes.admin.answers import UsageAnswer
from deepseek_gateway.routes.admin.operation import AdminCall, AdminOperation, TextAnswer
from deepseek_gateway.usage.ask import UsageAsk, UsageFormat
from deepseek_gateway.usage.lines import csv_of, json_of


class UsageQuery(UsageAsk):
    """The same as a file."""

    format: Annotated[UsageFormat, Field(description="csv: the same lines as a file")] = UsageFormat.JSON


def _usage(call: AdminCall) -> object:
    query: UsageQuery = call.query
    if query.org_id is not None and not call.by.sees(query.org_id):
        raise ApiError(422, f"org_id={query.org_id!r}: there is no such organisation", param="org_id")
    if call.by.org_id is not None:
        query = query.model_copy(update={"org_id": call.by.org_id})
    table = call.gateway.store.usage
    try:
        lines = table.answer(query.question())
    except StoreSlowError:
        message = "this takes longer than 10 s: ask for a shorter time or fewer dimensions"
        raise ApiError(422, message, param="since", code="report_too_slow") from None
    following = str(query.cursor + query.limit) if len(lines) > query.limit else None
    lines = lines[: query.limit]
    names = table.names_in(query.by, lines)
    if query.format is UsageFormat.CSV:
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        more = {} if following is None else {"x-next-cursor": following}
        text = csv_of(query.by, lines, names, call.gateway.prices.currency)
        return TextAnswer(text, "text/csv; charset=utf-8", {**headers, **more})
    return {"data": [json_of(query.by, line, names) for line in lines], "next_cursor": following}


OPERATIONS: Final = (
    AdminOperation(
        method="GET",
        path="/admin/usage",
        summary="Requests, tokens and cost by any dimensions; by tag, a request counts for each tag of its key",
        access=Scope.ADMIN_READ,
        query=UsageQuery,
        answer=(UsageAnswer,),
        also="text/csv",
        errors=(422,),
        run=_usage,
    ),
)
