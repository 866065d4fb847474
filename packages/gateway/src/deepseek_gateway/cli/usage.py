"""`deepseek-gateway usage`: requests, tokens and cost by any dimensions; and care of the hourly sums behind them."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import TypeVar

from pydantic import ValidationError

from deepseek_gateway.auth.fields import refusal
from deepseek_gateway.cli.common import (
    Administration,
    Commands,
    add_state_flag,
    administering,
    parse_count,
    settings_of,
    table,
)
from deepseek_gateway.cli.people import owner_id
from deepseek_gateway.errors import GatewayError
from deepseek_gateway.money.amounts import money_text
from deepseek_gateway.money.prices import load_prices
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.usage.ask import DEFAULT_BY, UsageAsk, parse_dimensions, parse_zone
from deepseek_gateway.usage.lines import csv_of, json_of
from deepseek_gateway.usage.question import MAX_LINES, Dimension, Order, UsageLine, total_of
from deepseek_gateway.usage.roller import SETTLED_S
from deepseek_gateway.usage.zones import DAY_S, HOUR_S

REPORT_TIMEOUT_S = 600.0
KEPT_DAYS = 62
"""Days whose rows no command deletes: budgets of a month are counted from them."""

TITLES = ("requests", "failed", "prompt", "cached", "completion", "total", "cost")
ONLY = ("tag", "model", "served-model", "route", "upstream", "status", "reason")
EPILOG = f"Dimensions: {', '.join(Dimension)}. An empty value, as in --user '', is of requests without one."
Value = TypeVar("Value")


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("usage", help="requests, tokens and cost by key, model, day, …", epilog=EPILOG)
    add_state_flag(parser)
    parser.add_argument(
        "action",
        nargs="?",
        choices=("show", "rebuild", "prune"),
        default="show",
        help="show totals (the default), make the hourly sums again, or delete old rows and keep their sums",
    )
    by = ",".join(DEFAULT_BY)
    parser.add_argument("--by", type=_told(parse_dimensions), default=DEFAULT_BY, metavar="LIST", help=f"({by})")
    for names, text in ((("--from", "--since"), "first day (all)"), (("--to", "--until"), "last day (all)")):
        parser.add_argument(*names, dest=names[1][2:], type=_told(parse_day), metavar="DAY", help=text)
    parser.add_argument("--tz", type=_told(parse_zone), default="UTC", metavar="ZONE", help="of days and hours (UTC)")
    parser.add_argument("--key", metavar="ID", help="one key only")
    parser.add_argument("--org", metavar="ORG", help="one organisation only, by id or name")
    parser.add_argument("--team", metavar="TEAM", help="one team only, by id, or name with --org")
    parser.add_argument("--user", metavar="USER", help="one user only, by id, or name with --org")
    for name in ONLY:
        parser.add_argument(f"--{name}", metavar="TEXT", help=f"one {name.replace('-', ' ')} only")
    parser.add_argument("--order", choices=[*Order], default=Order.LABELS, help="labels, or the largest first")
    parser.add_argument("--limit", type=parse_count, default=MAX_LINES - 1, metavar="N", help="lines at most")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="(table)")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="one line of JSON")
    parser.add_argument("--before", type=_told(parse_day), metavar="DAY", help="for prune: the first day to keep, UTC")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Show the totals, or do what else was asked for."""
    with administering(parsed) as admin:
        if parsed.action == "rebuild":
            return _rebuild(parsed, admin)
        if parsed.action == "prune":
            return _prune(parsed, admin)
        ask = _ask(parsed, admin)
        lines = admin.store.usage.answer(ask.question(), timeout_s=REPORT_TIMEOUT_S)
        is_cut, lines = len(lines) > ask.limit, lines[: ask.limit]
        names = admin.store.usage.names_in(ask.by, lines)
    if parsed.format == "json":
        print(json.dumps([json_of(ask.by, line, names) for line in lines]))
    elif parsed.format == "csv":
        print(csv_of(ask.by, lines, names, load_prices(settings_of(parsed).prices).currency), end="")
    else:
        print(_table(ask.by, lines, names))
        if is_cut:
            print(f"there are more than these {ask.limit} lines: see --limit, --order and the filters")
    return 0


def parse_day(text: str) -> date:
    """A day such as 2026-11-23.

    Raises:
        ValueError: it is none.
    """
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()  # noqa: DTZ007  a day of whichever zone
    except ValueError:
        raise ValueError(f"{text!r} is no day: write 2026-11-23") from None


def _told(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """A parser whose reasons argparse shows."""

    def told(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return told


def _ask(parsed: argparse.Namespace, admin: Administration) -> UsageAsk:
    fields = {name.replace("-", "_"): getattr(parsed, name.replace("-", "_")) for name in ONLY}
    org_id = None
    for kind in OwnerKind:
        reference = getattr(parsed, kind.value)
        found = owner_id(admin, kind, reference, org_id) if reference else reference
        fields[f"{kind.value}_id"] = found
        org_id = found if kind is OwnerKind.ORG else org_id
    given = {"since": parsed.since, "until": parsed.until, "tz": parsed.tz, "key_id": parsed.key}
    how = {"group_by": ",".join(parsed.by), "order": parsed.order, "limit": min(parsed.limit, MAX_LINES - 1)}
    try:
        return UsageAsk.model_validate({**fields, **given, **how})
    except ValidationError as error:
        raise refusal(error) from None


def _table(by: Sequence[Dimension], lines: Sequence[UsageLine], names: dict[str, str]) -> str:
    titles: list[str] = []
    for dimension in by:
        titles += [dimension.value, "name"] if dimension.is_named else [dimension.value]
    rows: list[list[object]] = []
    for line in lines:
        row: list[object] = []
        for dimension, label in zip(by, line.labels, strict=True):
            row += [label or "-", names.get(label, "")] if dimension.is_named else [label or "-"]
        rows.append([*row, *_numbers(line)])
    if rows:
        rows.append(["total", *[""] * (len(titles) - 1), *_numbers(total_of(lines))])
    return table((*titles, *TITLES), rows)


def _numbers(line: UsageLine) -> tuple[object, ...]:
    tokens = (line.prompt_tokens, line.cached_tokens, line.completion_tokens, line.total_tokens)
    return (line.requests, line.failed, *tokens, money_text(line.cost_nano))


def _rebuild(parsed: argparse.Namespace, admin: Administration) -> int:
    rollups, now = admin.store.rollups, int(time.time() // HOUR_S)
    since = 0 if parsed.since is None else _hour(parsed.since)
    until = now + 1 if parsed.until is None else min(now + 1, _hour(parsed.until) + DAY_S // HOUR_S)
    marked, done = rollups.mark_all(since, until), 0
    for hour in rollups.due(int((time.time() - SETTLED_S) // HOUR_S)):
        done += rollups.roll(hour)
    print(f"{marked} hours have usage: the sums of {done} are made; the others follow when they are over")
    return 0


def _prune(parsed: argparse.Namespace, admin: Administration) -> int:
    if parsed.before is None:
        raise GatewayError("usage prune needs --before DAY: the first day whose rows stay")
    until, newest = _hour(parsed.before), int(time.time() // HOUR_S) - KEPT_DAYS * 24
    if until > newest:
        raise GatewayError(f"--before {parsed.before}: the rows of the last {KEPT_DAYS} days stay, budgets need them")
    rollups, deleted = admin.store.rollups, 0
    for hour in rollups.due(until):
        rollups.roll(hour)
    for hour in rollups.hours_of_rows(until):
        found = rollups.prune(hour)
        if found is None:
            raise GatewayError(
                f"{deleted} rows are deleted; those of an hour differ from its sums: `usage rebuild` first"
            )
        deleted += found
    print(f"{deleted} rows from before {parsed.before} are deleted; their hourly sums stay")
    return 0


def _hour(day: date) -> int:
    return (day.toordinal() - date(1970, 1, 1).toordinal()) * (DAY_S // HOUR_S)
