"""/admin/balances."""

from typing import Annotated, Final

from pydantic import Field

from deepseek_gateway.auth.records import Scope
from deepseek_gateway.money.service import TopUpDraft, balance_json
from deepseek_gateway.routes.admin.answers import Answer
from deepseek_gateway.routes.admin.operation import AdminCall, AdminOperation

Money = Annotated[str, Field(description="a decimal")]


class BalanceAnswer(Answer):
    """A prepaid account: `total` is what is left of what was topped up and granted."""

    account: Annotated[str, Field(description="org:ID or key:ID")]
    currency: str
    total: Money
    topped_up: Money
    granted: Money
    spent: Money


class BalanceList(Answer):
    """All prepaid accounts."""

    data: list[BalanceAnswer]


def _list(call: AdminCall) -> object:
    return {"data": [balance_json(balance) for balance in call.gateway.balances.all(call.by)]}


def _top_up(call: AdminCall) -> object:
    return balance_json(call.gateway.balances.top_up(call.by, call.body))


OPERATIONS: Final = (
    AdminOperation(method="GET", path="/admin/balances", summary="Prepaid accounts", answer=(BalanceList,), run=_list),
    AdminOperation(
        method="POST",
        path="/admin/balances",
        summary="Top an account up; the first time makes it prepaid",
        access=Scope.ADMIN_WRITE,
        is_global=True,
        body=TopUpDraft,
        answer=(BalanceAnswer,),
        errors=(404, 409),
        run=_top_up,
    ),
)
