"""GET /user/balance: what the key's account has left, in DeepSeek's own shape."""

import asyncio
from dataclasses import dataclass
from typing import Final

import orjson
from starlette.types import Receive, Send
from starlette.types import Scope as ConnectionScope

from deepseek_client.types import WireModel
from deepseek_gateway.auth.records import Scope as KeyScope
from deepseek_gateway.edge.context import context_of
from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.ledger.records import account_of
from deepseek_gateway.limits.rules import Scope
from deepseek_gateway.money.service import deepseek_json
from deepseek_gateway.openapi.operation import Operation
from deepseek_gateway.routes.access import authenticate


class BalanceInfo(WireModel):
    """Money in one currency; gifts are spent first."""

    currency: str
    total_balance: str
    granted_balance: str
    topped_up_balance: str


class UserBalance(WireModel):
    """Whether requests can be paid. No infos: the account is not prepaid."""

    is_available: bool
    balance_infos: list[BalanceInfo]


OPERATION: Final = Operation(
    method="GET",
    path="/user/balance",
    aliases=("/v1/user/balance", "/beta/user/balance"),
    summary="The prepaid balance of the key's account",
    access=KeyScope.INFERENCE,
    answer=(UserBalance,),
)


@dataclass(frozen=True, slots=True)
class BalanceRoute:
    """The balance."""

    gateway: Gateway

    async def __call__(self, scope: ConnectionScope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Serve one request."""
        context_of(scope).route = OPERATION.path
        key = await authenticate(self.gateway, scope, KeyScope.INFERENCE)
        owner = Scope(org_id=key.org_id) if key.org_id is not None else Scope(key_id=key.public_id)
        await self.gateway.ledger.flush_of(owner)  # whoever asks after an answer finds it paid
        account = account_of(key.org_id, key.public_id)
        balance = await asyncio.to_thread(self.gateway.store.balances.find, account)
        await send_body(send, 200, orjson.dumps(deepseek_json(balance)))
