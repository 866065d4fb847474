"""`deepseek-gateway key create|list|rotate|revoke`."""

import argparse
import json
import time

from deepseek_gateway.auth.records import KeyRecord, Scope
from deepseek_gateway.auth.service import IssuedKey
from deepseek_gateway.cli.common import (
    Commands,
    add_state_flag,
    date_text,
    opened,
    parse_duration,
    parse_moment,
    settings_of,
    table,
)
from deepseek_gateway.limits.rules import Limits


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    keys = commands.add_parser("key", help="create, list, rotate and revoke API keys")
    actions = keys.add_subparsers(metavar="ACTION", required=True)
    _add_create(actions)
    listing = _add(actions, "list", "show all keys, without their secrets")
    listing.set_defaults(run=run_list)
    rotate = _add(actions, "rotate", "give a key a new secret")
    rotate.add_argument("id", help="the key's public id: the part after dsk_")
    rotate.add_argument("--grace", type=parse_duration, default="24h", help="how long the old one works on (24h)")
    rotate.set_defaults(run=run_rotate)
    revoke = _add(actions, "revoke", "end a key; gateways refuse it within 5 seconds")
    revoke.add_argument("id", help="the key's public id: the part after dsk_")
    revoke.set_defaults(run=run_revoke)


def run_create(parsed: argparse.Namespace) -> int:
    """Issue a key and show it, once."""
    limits = Limits(
        parsed.requests_per_minute, parsed.tokens_per_minute, parsed.concurrent_requests, parsed.tokens_per_month
    )
    models = tuple(name.strip() for name in parsed.models.split(",") if name.strip()) if parsed.models else None
    with opened(settings_of(parsed)) as (_, keys):
        issued = keys.create(
            parsed.name, scope=Scope(parsed.scope), models=models, limits=limits, expires=parsed.expires
        )
    _show(issued, as_json=parsed.json)
    return 0


def run_list(parsed: argparse.Namespace) -> int:
    """Show all keys."""
    with opened(settings_of(parsed)) as (store, _):
        records = store.keys.list()
    now = time.time()
    if parsed.json:
        print(json.dumps([record.to_json(now) for record in records]))
        return 0
    titles = ("id", "name", "scope", "state", "models", "rpm", "tpm", "concurrent", "per month", "expires", "created")
    print(table(titles, [_row(record, now) for record in records]))
    return 0


def run_rotate(parsed: argparse.Namespace) -> int:
    """Show the key's new text, once."""
    with opened(settings_of(parsed)) as (_, keys):
        issued = keys.rotate(parsed.id, parsed.grace)
    _show(issued, as_json=parsed.json)
    return 0


def run_revoke(parsed: argparse.Namespace) -> int:
    """End a key."""
    with opened(settings_of(parsed)) as (_, keys):
        record = keys.revoke(parsed.id)
    if parsed.json:
        print(json.dumps(record.to_json(time.time())))
    else:
        print(f"{record.public_id} ({record.name}) is revoked")
    return 0


def _add_create(actions: Commands) -> None:
    parser = _add(actions, "create", "issue a key and show it, once")
    parser.add_argument("--name", required=True, help="who or what it is for")
    parser.add_argument("--scope", choices=[scope.value for scope in Scope], default=Scope.INFERENCE.value)
    parser.add_argument("--models", metavar="A,B", help="models that it may use, base:* for the adapters of one (all)")
    parser.add_argument("--expires", type=parse_moment, help="2027-01-31 in UTC, or 30d from now (never)")
    parser.add_argument("--requests-per-minute", "--rpm", type=_limit, metavar="N")
    parser.add_argument("--tokens-per-minute", "--tpm", type=_limit, metavar="N")
    parser.add_argument("--concurrent-requests", "--concurrent", type=_limit, metavar="N")
    parser.add_argument("--tokens-per-month", type=_limit, metavar="N", help="budget of a calendar month in UTC")
    parser.set_defaults(run=run_create)


def _add(actions: Commands, name: str, text: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    add_state_flag(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


def _limit(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no limit: a whole number from 1; leave it out for none")
    return int(text)


def _show(issued: IssuedKey, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"key": issued.text, **issued.record.to_json(time.time())}))
        return
    print(issued.text)
    print(f"This is the only time that the key {issued.record.public_id} ({issued.record.name}) is shown.")


def _row(record: KeyRecord, now: float) -> list[object]:
    limits = ["-" if value is None else str(value) for value in record.limits.to_json().values()]
    models = "all" if record.models is None else ",".join(record.models)
    head = [record.public_id, record.name, record.scope.value, record.state(now), models]
    return [*head, *limits, date_text(record.expires), date_text(record.created)]
