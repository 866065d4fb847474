"""`deepseek-gateway erase`: destroy one subject's kept texts, with proof; and check such a proof."""

import argparse
import json
from pathlib import Path
from typing import Any

from deepseek_gateway.cli.common import Commands, add_state_flag
from deepseek_gateway.cli.payload import retention
from deepseek_gateway.cli.people import add_org_flag, owner_id
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.people.records import OwnerKind


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("erase", help="destroy the kept texts of one user or key, and print a proof")
    add_state_flag(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--user", metavar="USER", help="a user's id, or name with --org")
    what.add_argument("--key", metavar="ID", help="the public id of a key that belongs to no user")
    what.add_argument("--check", type=Path, metavar="FILE", help="check a proof; 1 if it does not hold")
    add_org_flag(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Erase and print the proof, a line of JSON; or check one."""
    if parsed.check is not None:
        return _check(parsed)
    with retention(parsed) as (service, admin):
        org_id = None if parsed.org is None else owner_id(admin, OwnerKind.ORG, parsed.org)
        if parsed.key is not None:
            subject = f"key:{parsed.key}"
        elif org_id is not None:
            subject = f"user:{owner_id(admin, OwnerKind.USER, parsed.user, org_id)}"
        else:
            subject = f"user:{parsed.user}"
        print(json.dumps(service.erase(admin.by, subject)))
    return 0


def _check(parsed: argparse.Namespace) -> int:
    proof = _read(parsed.check)
    with retention(parsed) as (service, _):
        faults, drops = service.check(proof), service.drops(proof)
    for fault in faults:
        print(f"fault: {fault}")
    if not faults:
        print(f"the proof holds: {proof['payloads']} texts of {proof['subject']} are gone")
        answers = sum(each["answers"] for each in drops)
        print(f"answers kept for retries: {len(drops)} gateway processes dropped theirs, {answers} in all")
    return 1 if faults else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        proof = json.loads(path.read_text("utf-8"))
        if isinstance(proof, dict) and {"entry", "entry_hash", "subject", "payloads"} <= proof.keys():
            return proof  # pyright: ignore[reportUnknownVariableType]
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        pass
    raise ConfigurationError(f"{path} holds no proof: `deepseek-gateway erase` prints one")
