"""Administration of prepaid balances, whatever the way in."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from deepseek_gateway.auth.acts import Act, record_act
from deepseek_gateway.auth.fields import Draft, Id
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.errors import ApiError
from deepseek_gateway.ledger.records import account_of
from deepseek_gateway.money.amounts import money_text, parse_money
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.atomic import atomic
from deepseek_gateway.storage.balances import Balance, BalanceError
from deepseek_gateway.storage.store import Store


def _amount(text: str) -> str:
    if parse_money(text) == 0:
        raise ValueError("it changes nothing")
    return text


class TopUpDraft(Draft):
    """Money for an organisation, or for a key that belongs to none. The first makes the account prepaid."""

    amount: Annotated[
        str,
        Field(description='a decimal in quotes, such as "12.50"; below zero takes money out again'),
        AfterValidator(_amount),
    ]
    org_id: Id | None = None
    key_id: Id | None = None
    kind: Annotated[Literal["top_up", "grant"], Field(description="paid, or given; what was given is spent first")] = (
        "top_up"
    )
    note: Annotated[str, Field(max_length=200)] = ""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.org_id is None) == (self.key_id is None):
            raise ValueError("give org_id, or key_id for a key without organisation")
        return self

    @property
    def nano(self) -> int:
        """The amount in nano-units."""
        return parse_money(self.amount)


@dataclass(frozen=True, slots=True)
class BalanceService:
    """Balances of one store, in the currency of the prices. Calls block on the store.

    Every method takes who asks first, and raises ApiError: 403, it may not; 404, there is no such account; 409, the
    currency is another or the balance would not fit; 422, a field is wrong.
    """

    store: Store
    currency: str

    @atomic
    def top_up(self, by: Principal, draft: TopUpDraft) -> Balance:
        """Put money in; gateways know within 2 seconds."""
        by.require(Scope.ADMIN_WRITE)
        by.require_everything()
        account = self.account(draft.org_id, draft.key_id)
        before = self.store.balances.find(account)
        try:
            after = self.store.balances.add(account, self.currency, draft.nano, draft.kind, draft.note)
        except BalanceError as error:
            raise ApiError(409, str(error), param="amount", code=error.code) from None
        shown = [None if each is None else balance_json(each) for each in (before, after)]
        act = Act(by, f"balance.{draft.kind}", account, draft.org_id, before=shown[0], after=shown[1])
        record_act(self.store.audit, act)
        return after

    def all(self, by: Principal) -> list[Balance]:
        """All prepaid accounts that the caller may see."""
        by.require(Scope.ADMIN_READ)
        if by.org_id is None:
            return self.store.balances.all()
        own = self.store.balances.find(account_of(by.org_id, ""))
        return [] if own is None else [own]

    def account(self, org_id: str | None, key_id: str | None) -> str:
        """The account of an organisation, or of a key without one."""
        if org_id is not None:
            if self.store.people.find(OwnerKind.ORG, org_id) is None:
                raise ApiError(404, f"org_id={org_id!r}: there is no such organisation", param="org_id")
            return account_of(org_id, "")
        assert key_id is not None
        key = self.store.keys.find(key_id)
        if key is None:
            raise ApiError(404, f"key_id={key_id!r}: there is no such key", param="key_id")
        if key.org_id is not None:
            message = f"key_id={key_id!r}: its organisation {key.org_id} pays for it"
            raise ApiError(422, message, param="key_id", code="pays_org")
        return account_of(None, key_id)


def balance_json(balance: Balance) -> dict[str, object]:
    """An account for listings."""
    return {
        "account": balance.account,
        "currency": balance.currency,
        "total": money_text(balance.total_nano),
        "topped_up": money_text(balance.topped_up_nano),
        "granted": money_text(balance.granted_nano),
        "spent": money_text(balance.spent_nano),
    }


def deepseek_json(balance: Balance | None) -> dict[str, object]:
    """An account as DeepSeek's own API shows it; None is not prepaid, so nothing runs out."""
    if balance is None:
        return {"is_available": True, "balance_infos": []}
    info = {
        "currency": balance.currency,
        "total_balance": money_text(balance.total_nano),
        "granted_balance": money_text(balance.granted_left_nano),
        "topped_up_balance": money_text(balance.total_nano - balance.granted_left_nano),
    }
    return {"is_available": balance.total_nano > 0, "balance_infos": [info]}
