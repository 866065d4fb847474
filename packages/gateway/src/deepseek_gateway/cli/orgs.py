"""`deepseek-gateway org`: organisations."""

import argparse

from deepseek_gateway.cli.common import Administration, Commands, checked
from deepseek_gateway.cli.people import add_owner_actions
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.people.service import OrgDraft


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    orgs = commands.add_parser("org", help="create, list, rename, disable and delete organisations")
    add_owner_actions(orgs.add_subparsers(metavar="ACTION", required=True), OwnerKind.ORG, _create)


def _create(admin: Administration, parsed: argparse.Namespace) -> Owner:
    return admin.people.create_org(admin.by, checked(OrgDraft, {"name": parsed.name}))
