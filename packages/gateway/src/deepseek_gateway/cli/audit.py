"""`deepseek-gateway audit list|verify|export|head`."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from deepseek_gateway.audit.chain import known_heads
from deepseek_gateway.audit.service import AuditService
from deepseek_gateway.cli.common import Commands, add_state_flag, administering, parse_past, table
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.storage.audit import AuditFilter


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    audit = commands.add_parser("audit", help="who did what: list, verify and export the audit log")
    actions = audit.add_subparsers(metavar="ACTION", required=True)
    _add_list(actions)
    verify = _add(actions, "verify", "check the whole log, and every request's life against it; 1 if it is not sound")
    verify.add_argument("--heads", type=Path, metavar="FILE", help="heads that were kept elsewhere, as `head` prints")
    verify.set_defaults(run=run_verify)
    export = _add(actions, "export", "print entries as lines of JSON, the oldest first")
    export.add_argument("--after", type=int, default=0, metavar="N", help="only those after this sequence number (0)")
    export.set_defaults(run=run_export)
    head = _add(actions, "head", "print where the log ends: a line to keep elsewhere")
    head.set_defaults(run=run_head)


def run_list(parsed: argparse.Namespace) -> int:
    """Show entries."""
    wanted = AuditFilter(parsed.actor, parsed.action, parsed.subject, parsed.request, parsed.since, parsed.until)
    with administering(parsed) as admin:
        entries = AuditService(admin.store).page(admin.by, wanted, before=parsed.before, limit=parsed.limit)
    if parsed.json:
        print(json.dumps([entry.to_json() for entry in entries]))
        return 0
    titles = ("sequence", "time", "actor", "action", "subject", "request", "after")
    rows = [
        [
            *(entry.sequence, _time(entry.at), entry.actor, entry.action, entry.subject),
            *(entry.request_id or "-", _short(entry.after)),
        ]
        for entry in entries
    ]
    print(table(titles, rows))
    return 0


def run_verify(parsed: argparse.Namespace) -> int:
    """Check everything."""
    known = None if parsed.heads is None else _heads(parsed.heads)
    with administering(parsed) as admin:
        verdict = AuditService(admin.store).verify(known)
    if parsed.json:
        print(json.dumps(verdict.to_json()))
    elif verdict.fault is None:
        print(
            f"sound: {verdict.num_entries} entries and {verdict.num_lives} lives of requests up to {verdict.head.hash}"
        )
    else:
        fault = verdict.fault
        print(f"NOT SOUND at entry {fault.sequence} ({fault.kind}): {fault.message}")
        print(f"{verdict.num_entries} entries before it are sound")
    return 0 if verdict.fault is None else 1


def run_export(parsed: argparse.Namespace) -> int:
    """Print entries."""
    with administering(parsed) as admin:
        for entry in admin.store.audit.entries(after=parsed.after):
            sys.stdout.write(json.dumps(entry.to_json(), ensure_ascii=False) + "\n")
    return 0


def run_head(parsed: argparse.Namespace) -> int:
    """Print the head."""
    with administering(parsed) as admin:
        head = AuditService(admin.store).head(admin.by)
    print(json.dumps({**asdict(head), "at": round(time.time(), 3)}))
    return 0


def _add_list(actions: Commands) -> None:
    parser = _add(actions, "list", "show entries, the newest first")
    parser.add_argument("--actor", help="key:ID, session:NAME, cli:NAME or gateway")
    parser.add_argument("--action", help="such as key.rotate, or key.* for all on keys")
    parser.add_argument("--subject", metavar="ID", help="what it was done to")
    parser.add_argument("--request", metavar="ID", help="the HTTP request that it came by")
    parser.add_argument(
        "--since", type=parse_past, metavar="DATE", help="from this date (UTC) on, or 7d: the last week"
    )
    parser.add_argument("--until", type=parse_past, metavar="DATE", help="before this date (UTC), or 7d: a week ago")
    parser.add_argument("--before", type=int, metavar="N", help="only those before this sequence number")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="entries at most (50, up to 200)")
    parser.set_defaults(run=run_list)


def _add(actions: Commands, name: str, text: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    add_state_flag(parser)
    parser.add_argument("--json", action="store_true", help="JSON")
    return parser


def _heads(path: Path) -> dict[int, str]:
    try:
        return dict(known_heads(path.read_text("utf-8").splitlines()))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(f"{path} holds something else than lines of `audit head`") from None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _short(text: str | None) -> str:
    return "-" if text is None else text if len(text) <= 80 else text[:79] + "…"
