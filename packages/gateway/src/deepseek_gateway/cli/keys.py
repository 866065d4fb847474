"""`deepseek-gateway key`: issue, look at, change and end API keys."""

import argparse
import json
import time
from pathlib import Path

from deepseek_gateway.auth.drafts import KeyChanges, KeyDraft
from deepseek_gateway.cli.common import (
    Administration,
    Commands,
    add_action,
    administering,
    all_pages,
    checked,
    parse_count,
    parse_duration,
)
from deepseek_gateway.cli.key_fields import add_field_flags, given_fields
from deepseek_gateway.cli.key_output import print_key, print_keys, with_text, write_csv
from deepseek_gateway.cli.people import owner_id
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.keys import KEY_STATES, KeyFilter

PAGE = 1000


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    keys = commands.add_parser("key", help="create, list, change, rotate, disable and revoke API keys")
    actions = keys.add_subparsers(metavar="ACTION", required=True)
    create = add_action(actions, "create", run_create, "issue keys and show them, once")
    create.add_argument("--name", required=True, help="who or what it is for")
    create.add_argument("--org", metavar="ORG", help="organisation that it belongs to, by id or name")
    create.add_argument("--count", type=parse_count, metavar="N", help="so many, with a number behind their names")
    create.add_argument("--csv", type=Path, metavar="FILE", help="write the keys to a new file (mode 0600) instead")
    add_field_flags(create)
    listing = add_action(actions, "list", run_list, "show keys without their secrets, the oldest first")
    listing.add_argument("--org", metavar="ORG", help="of one organisation, by id or name")
    listing.add_argument("--team", metavar="TEAM", help="of one team, by id, or by name with --org")
    listing.add_argument("--user", metavar="USER", help="of one user, by id, or by name with --org")
    listing.add_argument("--tag", help="with a tag")
    listing.add_argument("--in", choices=KEY_STATES, dest="key_state", help="in a state")
    listing.add_argument("--limit", type=parse_count, metavar="N", help="so many at most (all)")
    _add_id(add_action(actions, "show", run_show, "show one key without its secret"))
    change = add_action(actions, "change", run_change, "change what is given; the rest stays")
    change.add_argument("--name", help="who or what it is for")
    add_field_flags(change)
    _add_id(change)
    rotate = add_action(actions, "rotate", run_rotate, "give a key a new secret")
    rotate.add_argument("--grace", type=parse_duration, default="24h", help="how long the old one works on (24h)")
    _add_id(rotate)
    _add_id(add_action(actions, "disable", run_disable, "let a key rest; gateways refuse it within 5 seconds"))
    _add_id(add_action(actions, "enable", run_enable, "let a key work again"))
    _add_id(add_action(actions, "revoke", run_revoke, "end a key; gateways refuse it within 5 seconds"))
    _add_id(add_action(actions, "delete", run_delete, "delete a key that was never used"))


def run_create(parsed: argparse.Namespace) -> int:
    """Issue keys and show them, once."""
    with administering(parsed) as admin:
        fields = {"name": parsed.name, **given_fields(parsed, admin, None)}
        if parsed.org is not None:
            fields["org_id"] = owner_id(admin, OwnerKind.ORG, parsed.org)
        issued = admin.keys.create_many(admin.by, checked(KeyDraft, fields), parsed.count)
        if parsed.csv is not None:
            number = write_csv(parsed.csv, issued)
            told = {"count": number, "csv": str(parsed.csv)}
            print(json.dumps(told) if parsed.json else f"{number} keys are in {parsed.csv}, and shown nowhere else")
        elif parsed.count is None:
            (key,) = issued
            print_key(with_text(key), as_json=parsed.json, text=key.text)
        else:
            for key in issued:  # one a line: they are shown as they are made
                print(json.dumps(with_text(key)) if parsed.json else key.text)
    return 0


def run_list(parsed: argparse.Namespace) -> int:
    """Show keys."""
    with administering(parsed) as admin:
        wanted = _filter(parsed, admin)
        records = all_pages(
            lambda after: admin.keys.page(admin.by, wanted, after=after, limit=min(parsed.limit or PAGE, PAGE)),
            parsed.limit,
        )
    print_keys(records, as_json=parsed.json)
    return 0


def run_show(parsed: argparse.Namespace) -> int:
    """Show one key."""
    with administering(parsed) as admin:
        print_key(admin.keys.get(admin.by, parsed.id).to_json(time.time()), as_json=parsed.json)
    return 0


def run_change(parsed: argparse.Namespace) -> int:
    """Change a key."""
    with administering(parsed) as admin:
        fields = given_fields(parsed, admin, admin.keys.get(admin.by, parsed.id))
        if parsed.name is not None:
            fields["name"] = parsed.name
        record = admin.keys.change(admin.by, parsed.id, checked(KeyChanges, fields))
    print_key(record.to_json(time.time()), as_json=parsed.json)
    return 0


def run_rotate(parsed: argparse.Namespace) -> int:
    """Show the key's new text, once."""
    with administering(parsed) as admin:
        issued = admin.keys.rotate(admin.by, parsed.id, parsed.grace)
    print_key(with_text(issued), as_json=parsed.json, text=issued.text)
    return 0


def run_disable(parsed: argparse.Namespace) -> int:
    """Let a key rest."""
    with administering(parsed) as admin:
        record = admin.keys.set_disabled(admin.by, parsed.id, disabled=True)
    return _tell(parsed, record.to_json(time.time()), "is disabled")


def run_enable(parsed: argparse.Namespace) -> int:
    """Let a key work again."""
    with administering(parsed) as admin:
        record = admin.keys.set_disabled(admin.by, parsed.id, disabled=False)
    return _tell(parsed, record.to_json(time.time()), f"is {record.state(time.time())}")


def run_revoke(parsed: argparse.Namespace) -> int:
    """End a key."""
    with administering(parsed) as admin:
        record = admin.keys.revoke(admin.by, parsed.id)
    return _tell(parsed, record.to_json(time.time()), "is revoked")


def run_delete(parsed: argparse.Namespace) -> int:
    """Delete a key."""
    with administering(parsed) as admin:
        record = admin.keys.delete(admin.by, parsed.id)
    return _tell(parsed, record.to_json(time.time()), "is deleted")


def _filter(parsed: argparse.Namespace, admin: Administration) -> KeyFilter:
    org = None if parsed.org is None else owner_id(admin, OwnerKind.ORG, parsed.org)
    team = None if parsed.team is None else owner_id(admin, OwnerKind.TEAM, parsed.team, org)
    user = None if parsed.user is None else owner_id(admin, OwnerKind.USER, parsed.user, org)
    return KeyFilter(org_id=org, team_id=team, user_id=user, tag=parsed.tag, state=parsed.key_state)


def _tell(parsed: argparse.Namespace, key: dict[str, object], what: str) -> int:
    print(json.dumps(key) if parsed.json else f"{key['id']} ({key['name']}) {what}")
    return 0


def _add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the key's public id: the part after dsk_")
