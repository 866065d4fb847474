"""Prepaid balances and the prices that are spent from them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from starlette.types import ASGIApp

from deepseek_gateway.errors import ApiError
from deepseek_gateway.money.prices import PriceEntry
from deepseek_gateway.money.service import TopUpDraft
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.balances import Balance
from deepseek_gateway.web import formats
from deepseek_gateway.web.owners import choices, find_owners, names_of
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import PageError, fault_of

KINDS = ("top_up", "grant")
TEXTS = ("org", "key", "amount", "kind", "note")


@dataclass(slots=True)
class TopUpForm:
    """The form of a top-up, as it was filled in."""

    org: str = ""
    key: str = ""
    amount: str = ""
    kind: str = "top_up"
    note: str = ""
    faults: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, page: Page) -> "TopUpForm":
        """The form that was sent."""
        given = cls()
        for name in TEXTS:
            setattr(given, name, page.value(name))
        return given

    def draft(self, page: Page) -> TopUpDraft | None:
        """What it asks for; None where it has faults. Blocks on the store: the organisation is looked up."""
        if bool(self.org) == bool(self.key):
            self.faults["org"] = page.text("fault.org_or_key")
            return None
        owners = find_owners(page, {"org": self.org})
        self.faults.update(owners.faults)
        values = {
            "amount": formats.ungrouped(self.amount),
            "org_id": owners.ids.get(OwnerKind.ORG),
            "key_id": self.key or None,
            "kind": self.kind,
            "note": self.note,
        }
        if self.faults:
            return None
        try:
            return TopUpDraft.model_validate(values)
        except ValidationError as error:
            self.blame(page, error)
            return None

    def blame(self, page: Page, error: ApiError | ValidationError) -> None:
        """Put a refusal beside its field."""
        fault = fault_of(page, error)
        self.faults[fault.field if fault.field in TEXTS else "amount"] = fault.message


@dataclass(frozen=True, slots=True)
class ShownPrice:
    """One price of the file; `state` is `now`, `later` or `past`."""

    entry: PriceEntry
    state: str


async def listing(page: Page) -> ASGIApp:
    """All accounts, and all prices."""
    return await _listing(page, TopUpForm(org=page.query("org"), key=page.query("key")), 200)


async def top_up(page: Page) -> ASGIApp:
    """Put money in."""
    given = TopUpForm.read(page)
    draft = await page.web.call(given.draft, page)
    if draft is None:
        return await _listing(page, given, 422)
    try:
        balance = await page.web.call(page.gateway.balances.top_up, page.principal, draft)
    except ApiError as error:
        given.blame(page, error)
        return await _listing(page, given, error.status)
    return page.redirect(f"/ui/balances/{balance.account}", done="topped_up")


async def detail(page: Page) -> ASGIApp:
    """One account with everything that was put in."""
    table, account = page.gateway.store.balances, page.params["account"][:100]
    balance = await page.web.call(table.find, account)
    if balance is None:
        raise PageError(404, page.text("balance.unknown"), code="not_found")
    entries = await page.web.call(table.entries, account)
    kind, owner_id = owner_of(balance)
    names = await page.web.call(names_of, page, [(kind, owner_id)])
    return page.html(
        "balance.html",
        balance=balance,
        entries=list(reversed(entries)),
        kind=kind,
        owner_id=owner_id,
        name=names.get(owner_id, owner_id),
    )


def prices_at(entries: Sequence[PriceEntry], now: float) -> list[ShownPrice]:
    """Prices by model, the newest first, with what holds now."""
    shown: list[ShownPrice] = []
    current: set[str] = set()
    for entry in sorted(entries, key=lambda entry: (entry.model, -entry.since_s)):
        if entry.since_s > now:
            state = "later"
        else:
            state = "past" if entry.model in current else "now"
            current.add(entry.model)
        shown.append(ShownPrice(entry, state))
    return shown


def owner_of(balance: Balance) -> tuple[str, str]:
    """Kind and id of whom an account belongs to."""
    kind, _, owner_id = balance.account.partition(":")
    return kind, owner_id


async def _listing(page: Page, given: TopUpForm, status: int) -> ASGIApp:
    balances = await page.web.call(page.gateway.balances.all, page.principal)
    owners = [(balance, *owner_of(balance)) for balance in balances]
    prices = page.gateway.prices
    return page.html(
        "balances.html",
        status,
        form=given,
        balances=owners,
        names=await page.web.call(names_of, page, [(kind, owner_id) for _, kind, owner_id in owners]),
        orgs=await page.web.call(choices, page, OwnerKind.ORG),
        kinds=KINDS,
        prices=prices_at(prices.entries, time.time()),
        currency=prices.currency,
    )
