"""`deepseek-gateway user`: users of an organisation."""

import argparse

from deepseek_gateway.cli.common import Administration, Commands, add_action, administering, checked
from deepseek_gateway.cli.people import add_org_flag, add_owner_actions, owner_id, print_owner
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.people.service import UserChanges, UserDraft


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    users = commands.add_parser("user", help="create, list, rename, move, disable and delete users")
    actions = users.add_subparsers(metavar="ACTION", required=True)
    create = add_owner_actions(actions, OwnerKind.USER, _create)
    create.add_argument("--team", metavar="TEAM", help="its team, by id, or by name with --org")
    move = add_action(actions, "move", run_move, "put a user into another team, or none")
    add_org_flag(move)
    move.add_argument("which", metavar="USER", help="its id or name")
    move.add_argument("team", metavar="TEAM", help="its new team, by id or name; none")


def run_move(parsed: argparse.Namespace) -> int:
    """Put a user into another team."""
    with administering(parsed) as admin:
        org_id = None if parsed.org is None else owner_id(admin, OwnerKind.ORG, parsed.org)
        user = admin.people.find(admin.by, OwnerKind.USER, parsed.which, org_id)
        team = None if parsed.team == "none" else owner_id(admin, OwnerKind.TEAM, parsed.team, user.org_id)
        moved = admin.people.change_user(admin.by, user.id, checked(UserChanges, {"team_id": team}))
    print_owner(moved, as_json=parsed.json, done="move")
    return 0


def _create(admin: Administration, parsed: argparse.Namespace) -> Owner:
    org_id = None if parsed.org is None else owner_id(admin, OwnerKind.ORG, parsed.org)
    team_id = None if parsed.team is None else owner_id(admin, OwnerKind.TEAM, parsed.team, org_id)
    fields = {"name": parsed.name, "org_id": org_id, "team_id": team_id}
    return admin.people.create_user(admin.by, checked(UserDraft, fields))
