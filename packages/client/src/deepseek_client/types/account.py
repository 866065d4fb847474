"""`GET /user/balance`."""

from decimal import Decimal

from deepseek_client.types.base import AnswerModel, WireModel


class BalanceInfo(WireModel):
    """Money in one currency (CNY, USD): exact decimals, gifts and payments apart."""

    currency: str
    total_balance: Decimal
    granted_balance: Decimal = Decimal(0)
    topped_up_balance: Decimal = Decimal(0)


class Balance(AnswerModel):
    """Whether the account can pay for requests, and what it has; no infos where it is not prepaid."""

    is_available: bool
    balance_infos: list[BalanceInfo]
