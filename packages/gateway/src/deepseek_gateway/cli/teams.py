"""`deepseek-gateway team`: teams of an organisation."""

import argparse

from deepseek_gateway.cli.common import Administration, Commands, checked
from deepseek_gateway.cli.people import add_owner_actions, owner_id
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.people.service import TeamDraft


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    teams = commands.add_parser("team", help="create, list, rename, disable and delete teams")
    add_owner_actions(teams.add_subparsers(metavar="ACTION", required=True), OwnerKind.TEAM, _create)


def _create(admin: Administration, parsed: argparse.Namespace) -> Owner:
    org_id = None if parsed.org is None else owner_id(admin, OwnerKind.ORG, parsed.org)
    return admin.people.create_team(admin.by, checked(TeamDraft, {"name": parsed.name, "org_id": org_id}))
