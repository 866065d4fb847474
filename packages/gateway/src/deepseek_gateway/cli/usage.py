"""`deepseek-gateway usage`: totals by key and day."""

import argparse
import json
from dataclasses import asdict

from deepseek_gateway.cli.common import Commands, add_state_flag, opened, parse_day, settings_of, table
from deepseek_gateway.money.amounts import money_text

DAY_S = 86400


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("usage", help="tokens and cost by key and day")
    add_state_flag(parser)
    parser.add_argument("--since", type=parse_day, metavar="DAY", help="first day, UTC (all)")
    parser.add_argument("--until", type=parse_day, metavar="DAY", help="last day, UTC (all)")
    parser.add_argument("--key", metavar="ID", help="one key only")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Show the totals."""
    until = None if parsed.until is None else parsed.until + DAY_S
    with opened(settings_of(parsed)) as (store, _):
        totals = store.ledger.usage(parsed.since, until, parsed.key)
    if parsed.json:
        print(json.dumps([{**asdict(total), "total_tokens": total.total_tokens} for total in totals]))
        return 0
    titles = ("day", "key", "name", "requests", "prompt", "cached", "completion", "total", "cost")
    rows: list[list[object]] = [
        [
            *(total.day, total.key_id, total.key_name, total.requests),
            *(total.prompt_tokens, total.cached_tokens, total.completion_tokens, total.total_tokens),
            money_text(total.cost_nano),
        ]
        for total in totals
    ]
    columns = list(zip(*[[value for value in row if isinstance(value, int)] for row in rows], strict=True))
    if rows:
        cost = money_text(sum(total.cost_nano for total in totals))
        rows.append(["total", "", "", *(sum(column) for column in columns), cost])
    print(table(titles, rows))
    return 0
