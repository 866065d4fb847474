"""`deepseek-gateway payload policy|policies|show`: kept texts of requests."""

import argparse
import json
import sys
from collections.abc import Generator
from contextlib import contextmanager

from deepseek_gateway.audit.payload import Policy
from deepseek_gateway.audit.retention import PolicyKind, RetentionService
from deepseek_gateway.audit.vault import create_master_key
from deepseek_gateway.cli.common import Administration, Commands, add_state_flag, administering, settings_of, table
from deepseek_gateway.cli.people import owner_id
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.state_dir import open_vault


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    payload = commands.add_parser("payload", help="whose prompts and answers are kept, and reading one")
    actions = payload.add_subparsers(metavar="ACTION", required=True)
    keep = _add(actions, "keep", "keep texts of a key, or of an organisation's keys")
    _add_whose(keep)
    keep.add_argument(
        "--days", type=int, required=True, metavar="N", help="how long; 0: not, whatever the organisation's"
    )
    keep.add_argument("--mask-pii", action="store_true", help="take personal data out before they are kept")
    keep.set_defaults(run=run_keep)
    stop = _add(actions, "stop", "keep no more texts; what is kept stays until its days are over")
    _add_whose(stop)
    stop.set_defaults(run=run_stop)
    _add(actions, "policies", "show whose texts are kept").set_defaults(run=run_policies)
    show = _add(actions, "show", "show what was asked and answered; the audit log tells who did")
    show.add_argument("id", help="the request's id")
    show.set_defaults(run=run_show)


def run_keep(parsed: argparse.Namespace) -> int:
    """Set a policy; makes the master key if there is none."""
    settings = settings_of(parsed)
    with retention(parsed) as (service, admin):
        kind, name = _whose(admin, parsed)
        if settings.payload_key is None and create_master_key(settings.payload_key_path):
            made = f"made the master key {settings.payload_key_path}: back it up apart from the store"
            print(made, file=sys.stderr)
        policy = service.set_policy(admin.by, kind, name, Policy(parsed.days, parsed.mask_pii))
    print(
        json.dumps(_shown(kind, name, policy)) if parsed.json else f"texts of {kind} {name} are kept {parsed.days} days"
    )
    return 0


def run_stop(parsed: argparse.Namespace) -> int:
    """Remove a policy."""
    with retention(parsed) as (service, admin):
        kind, name = _whose(admin, parsed)
        service.remove_policy(admin.by, kind, name)
    print(json.dumps({"kind": kind, "id": name}) if parsed.json else f"texts of {kind} {name} are kept no more")
    return 0


def run_policies(parsed: argparse.Namespace) -> int:
    """Show policies."""
    with retention(parsed) as (service, admin):
        policies = service.policies(admin.by)
    if parsed.json:
        print(json.dumps([_shown(kind, name, policy) for (kind, name), policy in policies.items()]))
        return 0
    rows = [[kind, name, policy.days, "yes" if policy.mask_pii else "no"] for (kind, name), policy in policies.items()]
    print(table(("kind", "id", "days", "personal data masked"), rows))
    return 0


def run_show(parsed: argparse.Namespace) -> int:
    """Show a request's texts."""
    with retention(parsed) as (service, admin):
        print(json.dumps(service.show(admin.by, parsed.id), ensure_ascii=False, indent=None if parsed.json else 2))
    return 0


@contextmanager
def retention(parsed: argparse.Namespace) -> Generator[tuple[RetentionService, Administration]]:
    """The service, and all that administers the same store."""
    with administering(parsed) as admin:
        yield RetentionService(admin.store, open_vault(settings_of(parsed))), admin


def _add_whose(parser: argparse.ArgumentParser) -> None:
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--key", metavar="ID", help="a key's public id")
    whose.add_argument("--org", metavar="ORG", help="an organisation's id or name")


def _whose(admin: Administration, parsed: argparse.Namespace) -> tuple[PolicyKind, str]:
    return ("key", parsed.key) if parsed.key is not None else ("org", owner_id(admin, OwnerKind.ORG, parsed.org))


def _shown(kind: str, name: str, policy: Policy) -> dict[str, object]:
    return {"kind": kind, "id": name, "days": policy.days, "mask_pii": policy.mask_pii}


def _add(actions: Commands, name: str, text: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    add_state_flag(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser
