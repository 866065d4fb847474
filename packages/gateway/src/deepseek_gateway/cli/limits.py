"""`deepseek-gateway limit`: rules for organisations, teams, users, keys and models."""

import argparse
import json

from deepseek_gateway.cli.common import (
    Administration,
    Commands,
    add_action,
    administering,
    checked,
    date_text,
    parse_count,
    table,
)
from deepseek_gateway.cli.people import owner_id
from deepseek_gateway.limits.drafts import LimitDraft, event_json, rule_json
from deepseek_gateway.limits.rules import EACH, Kind, LimitRule
from deepseek_gateway.limits.service import LimitService
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.rules import LimitEvent

SUBJECTS = ("org_id", "team_id", "user_id", "key_id", "model")


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    limits = commands.add_parser("limit", help="set, list and remove limits")
    actions = limits.add_subparsers(metavar="ACTION", required=True)
    _add_set(actions)
    add_action(actions, "list", run_list, "show all limits")
    remove = add_action(actions, "remove", run_remove, "forget a limit; gateways know within 2 seconds")
    remove.add_argument("id", help="the limit's id")
    events = add_action(actions, "events", run_events, "show which soft limits were reached, the newest first")
    events.add_argument("--limit", type=parse_count, default=50, metavar="N", help="so many at most (50)")


def run_set(parsed: argparse.Namespace) -> int:
    """Set one limit."""
    with administering(parsed) as admin:
        fields = {
            "kind": parsed.kind.replace("-", "_"),
            "limit": parsed.amount,
            "org_id": _owner(admin, OwnerKind.ORG, parsed.org),
            "key_id": parsed.key,
            "model": parsed.model,
            "time_zone": parsed.time_zone,
            "soft": parsed.soft,
            "on_failure": parsed.on_failure,
        }
        org_id = None if fields["org_id"] == EACH else fields["org_id"]
        fields["team_id"] = _owner(admin, OwnerKind.TEAM, parsed.team, org_id)
        fields["user_id"] = _owner(admin, OwnerKind.USER, parsed.user, org_id)
        rule = LimitService(admin.store).set(admin.by, checked(LimitDraft, fields), parsed.id)
    print(json.dumps(rule_json(rule)) if parsed.json else rule.id)
    return 0


def run_list(parsed: argparse.Namespace) -> int:
    """Show all limits."""
    with administering(parsed) as admin:
        rules = LimitService(admin.store).all(admin.by)
    if parsed.json:
        print(json.dumps([rule_json(rule) for rule in rules]))
    else:
        print(
            table(("id", "limit", "amount", "for", "zone", "if Redis is away", "set"), [_row(rule) for rule in rules])
        )
    return 0


def run_remove(parsed: argparse.Namespace) -> int:
    """Forget a limit."""
    with administering(parsed) as admin:
        rule = LimitService(admin.store).remove(admin.by, parsed.id)
    print(json.dumps(rule_json(rule)) if parsed.json else f"{rule.id} ({rule.kind}) is removed")
    return 0


def run_events(parsed: argparse.Namespace) -> int:
    """Show what soft limits had to say."""
    with administering(parsed) as admin:
        events = LimitService(admin.store).events(admin.by, parsed.limit)
    if parsed.json:
        print(json.dumps([event_json(event) for event in events]))
        return 0
    titles = ("when", "limit", "kind", "amount", "taken", "request")
    print(table(titles, [_event_row(event) for event in events]))
    return 0


def _add_set(actions: Commands) -> None:
    parser = add_action(actions, "set", run_set, "limit all requests that match")
    kinds = [kind.value.replace("_", "-") for kind in Kind if kind is not Kind.BALANCE]
    parser.add_argument("kind", choices=kinds, metavar="KIND", help=", ".join(kinds))
    parser.add_argument("amount", help="a whole number; of money a decimal such as 12.50")
    parser.add_argument("--id", help="put it in the place of this limit")
    parser.add_argument("--org", metavar="ORG", help="of one organisation, by id or name; '*' for each one")
    parser.add_argument("--team", metavar="TEAM", help="of one team; '*' for each one")
    parser.add_argument("--user", metavar="USER", help="of one user; '*' for each one")
    parser.add_argument("--key", metavar="ID", help="of one key, by its public id; '*' for each one")
    parser.add_argument("--model", help="for one model, or a prefix*; '*' for each one")
    parser.add_argument("--time-zone", default="UTC", help="where a day or month begins, such as Asia/Shanghai (UTC)")
    parser.add_argument("--soft", action="store_true", help="refuse nothing: tell when it is reached")
    parser.add_argument(
        "--on-failure", choices=["deny", "share"], help="while Redis is away (share for rates; budgets always deny)"
    )


def _owner(admin: Administration, kind: OwnerKind, given: str | None, org_id: str | None = None) -> str | None:
    return given if given is None or given == EACH else owner_id(admin, kind, given, org_id)


def _row(rule: LimitRule) -> list[object]:
    named = [(name.removesuffix("_id"), getattr(rule, name)) for name in SUBJECTS]
    whom = " ".join(f"{name}={value}" for name, value in named if value is not None) or "all"
    kind = f"{rule.kind} (soft)" if rule.soft else rule.kind.value
    zone = rule.time_zone if rule.kind.period is not None else "-"
    return [rule.id, kind, rule_json(rule)["limit"], whom, zone, rule.on_failure, date_text(rule.created)]


def _event_row(event: LimitEvent) -> list[object]:
    shown = Kind(event.kind).shown
    amounts = (shown(event.amount), shown(event.taken))
    return [date_text(event.created), event.rule_id, event.kind, *amounts, event.request_id]
