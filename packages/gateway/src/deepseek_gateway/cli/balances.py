"""`deepseek-gateway balance`: prepaid money."""

import argparse
import json

from deepseek_gateway.cli.common import Administration, Commands, add_action, administering, checked, settings_of, table
from deepseek_gateway.cli.people import owner_id
from deepseek_gateway.money.prices import load_prices
from deepseek_gateway.money.service import BalanceService, TopUpDraft, balance_json
from deepseek_gateway.people.records import OwnerKind


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    balances = commands.add_parser("balance", help="top up and show prepaid balances")
    actions = balances.add_subparsers(metavar="ACTION", required=True)
    top_up = add_action(actions, "top-up", run_top_up, "put money into an account; the first time makes it prepaid")
    top_up.add_argument("amount", help="such as 12.50, in the currency of the prices; below zero takes money out")
    _add_account(top_up)
    top_up.add_argument("--grant", action="store_true", help="a gift: it is spent before paid money")
    top_up.add_argument("--note", default="", help="kept with the entry")
    show = add_action(actions, "show", run_show, "show one account, or all")
    _add_account(show)


def run_top_up(parsed: argparse.Namespace) -> int:
    """Put money in."""
    with administering(parsed) as admin:
        fields = {
            "amount": parsed.amount,
            "org_id": _org(admin, parsed),
            "key_id": parsed.key,
            "kind": "grant" if parsed.grant else "top_up",
            "note": parsed.note,
        }
        balance = _service(admin, parsed).top_up(admin.by, checked(TopUpDraft, fields))
    shown = balance_json(balance)
    print(json.dumps(shown) if parsed.json else f"{shown['account']} has {shown['total']} {shown['currency']}")
    return 0


def run_show(parsed: argparse.Namespace) -> int:
    """Show accounts."""
    with administering(parsed) as admin:
        service = _service(admin, parsed)
        org_id = _org(admin, parsed)
        wanted = None if org_id is None and parsed.key is None else service.account(org_id, parsed.key)
        balances = [each for each in service.all(admin.by) if wanted in {None, each.account}]
    if parsed.json:
        print(json.dumps([balance_json(balance) for balance in balances]))
        return 0
    titles = ("account", "currency", "total", "topped_up", "granted", "spent")
    print(table(titles, [[balance_json(balance)[title] for title in titles] for balance in balances]))
    return 0


def _add_account(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--org", metavar="ORG", help="the organisation's account, by id or name")
    parser.add_argument("--key", metavar="ID", help="the account of a key that belongs to no organisation")


def _org(admin: Administration, parsed: argparse.Namespace) -> str | None:
    return None if parsed.org is None else owner_id(admin, OwnerKind.ORG, parsed.org)


def _service(admin: Administration, parsed: argparse.Namespace) -> BalanceService:
    return BalanceService(admin.store, load_prices(settings_of(parsed).prices).currency)
