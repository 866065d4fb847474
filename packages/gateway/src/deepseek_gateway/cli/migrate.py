"""`deepseek-gateway migrate`: make the state directory, or bring its store up to date."""

import argparse

from deepseek_gateway.cli.common import Commands, add_state_flag, settings_of
from deepseek_gateway.state_dir import prepare_state


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("migrate", help="make the state directory, or bring its store up to date")
    add_state_flag(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Migrate."""
    settings = settings_of(parsed)
    applied = prepare_state(settings)
    for migration in applied:
        print(f"applied {migration.name}")
    print(f"{settings.store_path if settings.store_url is None else 'the store'} is up to date")
    return 0
