"""The tables of prepaid money."""

import secrets
import time
from dataclasses import dataclass
from typing import Literal

from deepseek_gateway.errors import GatewayError
from deepseek_gateway.limits.rules import MAX_LIMIT
from deepseek_gateway.money.amounts import money_text
from deepseek_gateway.storage.database import Database, Row
from deepseek_gateway.storage.rules import bump

EntryKind = Literal["top_up", "grant"]
_COLUMNS = "account, currency, topped_up_nano, granted_nano, spent_nano"


class BalanceError(GatewayError):
    """A top-up that does not fit: another currency, or more than can be counted. `code` says which."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Balance:
    """One account's money in nano-units: paid in, given, and spent so far."""

    account: str
    currency: str
    topped_up_nano: int
    granted_nano: int
    spent_nano: int

    @property
    def credit_nano(self) -> int:
        """All that was put in."""
        return self.topped_up_nano + self.granted_nano

    @property
    def total_nano(self) -> int:
        """What is left."""
        return self.credit_nano - self.spent_nano

    @property
    def granted_left_nano(self) -> int:
        """What is left of the gifts: they are spent first."""
        return max(0, min(self.granted_nano - self.spent_nano, self.total_nano))


@dataclass(frozen=True, slots=True)
class BalanceEntry:
    """Money that was put in."""

    id: str
    account: str
    kind: str
    amount_nano: int
    note: str
    created: float


@dataclass(frozen=True, slots=True)
class BalanceTable:
    """Accounts that pay before they use. What they spend is booked with the ledger's rows."""

    database: Database

    def add(self, account: str, currency: str, amount_nano: int, kind: EntryKind = "top_up", note: str = "") -> Balance:
        """Put money in; the first time makes the account prepaid. A negative amount takes it out again.

        Raises:
            BalanceError: the account is kept in another currency, or the sum is too large.
        """
        entry = {
            "id": f"pay_{secrets.token_hex(8)}",
            "account": account,
            "currency": currency,
            "kind": kind,
            "amount": amount_nano,
            "note": note,
            "created": time.time(),
            "topped_up": amount_nano if kind == "top_up" else 0,
            "granted": amount_nano if kind == "grant" else 0,
        }
        with self.database.transaction() as transaction:
            version = bump(transaction, "balances")  # also the lock that lets one top-up in at a time
            rows = transaction.read(
                "INSERT INTO balances (account, currency, topped_up_nano, granted_nano, spent_nano, version) "
                "VALUES (:account, :currency, :topped_up, :granted, 0, :version) ON CONFLICT (account) DO UPDATE SET "
                "topped_up_nano = balances.topped_up_nano + excluded.topped_up_nano, "
                "granted_nano = balances.granted_nano + excluded.granted_nano, version = excluded.version "
                "RETURNING account, currency, topped_up_nano, granted_nano, spent_nano",
                {**entry, "version": version},
            )
            balance = _balance(rows[0])
            if balance.currency != currency:
                raise BalanceError(f"{account} is kept in {balance.currency}, not {currency}", "other_currency")
            if not 0 <= balance.credit_nano <= MAX_LIMIT:
                raise BalanceError(
                    f"{account} would have {money_text(balance.credit_nano)} {currency} in all, spent money included: "
                    f"0 to {money_text(MAX_LIMIT)} can be kept",
                    "balance_out_of_bounds",
                )
            transaction.write(
                "INSERT INTO balance_entries VALUES (:id, :account, :kind, :amount, :note, :created)", entry
            )
        return balance

    def find(self, account: str) -> Balance | None:
        """One account; None when it is not prepaid."""
        rows = self.database.read(f"SELECT {_COLUMNS} FROM balances WHERE account = :account", {"account": account})  # noqa: S608
        return _balance(rows[0]) if rows else None

    def all(self) -> list[Balance]:
        """All accounts, by name."""
        return [_balance(row) for row in self.database.read(f"SELECT {_COLUMNS} FROM balances ORDER BY account")]  # noqa: S608

    def changed_since(self, version: int) -> list[Balance]:
        """Accounts whose credit changed after a version."""
        sql = f"SELECT {_COLUMNS} FROM balances WHERE version > :version"  # noqa: S608
        return [_balance(row) for row in self.database.read(sql, {"version": version})]

    def entries(self, account: str) -> list[BalanceEntry]:
        """What was put into an account, the oldest first."""
        rows = self.database.read(
            "SELECT id, account, kind, amount_nano, note, created FROM balance_entries WHERE account = :account "
            "ORDER BY created, id",
            {"account": account},
        )
        return [BalanceEntry(*row) for row in rows]


def _balance(row: Row) -> Balance:
    account, currency, *amounts = row
    return Balance(account, currency, *map(int, amounts))
