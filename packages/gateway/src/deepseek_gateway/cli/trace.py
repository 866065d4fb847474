"""`deepseek-gateway trace ID`: one request, from its key to its end."""

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from deepseek_gateway.audit.service import TraceService
from deepseek_gateway.cli.common import Commands, add_state_flag, administering
from deepseek_gateway.money.amounts import money_text


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("trace", help="follow one request: its key, tries at engines, tokens and end")
    add_state_flag(parser)
    parser.add_argument("id", help="the x-request-id of its answer, or the caller's own X-Request-ID")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Show the request."""
    with administering(parsed) as admin:
        trace = TraceService(admin.store).resolve(admin.by, parsed.id)
    print(json.dumps(trace) if parsed.json else "\n".join(_lines(trace)))
    return 0


def _lines(trace: dict[str, Any]) -> Iterator[str]:
    came = datetime.fromtimestamp(trace["created"], UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    row: dict[str, Any] = trace["ledger"] or trace["refusal"]
    yield f"request   {trace['request_id']}"
    if trace["client_request_id"]:
        yield f"caller's  {trace['client_request_id']}"
    yield f"came      {came} UTC on {trace['node']}"
    yield f"key       {trace['key_id']}"
    yield f"route     {row['route']}{' (stream)' if row.get('stream') else ''}"
    served = row.get("served_model")
    yield f"model     {row['model'] or '-'}{f' (at the engine {served})' if served not in {None, row['model']} else ''}"
    yield f"in force  policy {trace['policy_version'] or '-'}, word lists {trace['list_version'] or '-'}"
    for step in trace["steps"]:
        yield f"step      {step['at_ms']:.1f} ms {step['name']} {step['detail']}".rstrip()
    for attempt in trace["attempts"]:
        took = "?" if attempt["took_ms"] is None else f"{attempt['took_ms']:.1f}"
        end = attempt["fault"] or "answered"
        status = f" with {attempt['status']}" if attempt["status"] else ""
        where = f"try {attempt['number']:<5} {attempt['began_ms']:.1f} ms {attempt['upstream']}"
        yield f"{where}: {end}{status} after {took} ms"
        yield f"          as {attempt['id']}"
    yield from _end_lines(trace)


def _end_lines(trace: dict[str, Any]) -> Iterator[str]:
    row = trace["ledger"]
    if row is None:
        refusal = trace["refusal"]
        yield f"refused   {refusal['status']} {refusal['code'] or ''}: {refusal['message']}"
    else:
        first = "-" if row["ttft_ms"] is None else f"{row['ttft_ms']:.1f} ms"
        yield f"end       {row['status']} ({row['end_reason']}), HTTP {row['http_status']}"
        yield (
            f"tokens    {row['prompt_tokens']} prompt ({row['cached_tokens']} cached), {row['completion_tokens']} "
            f"completion, {row['accuracy']}"
        )
        yield f"times     first token {first}, total {row['latency_ms']:.1f} ms"
        if row["price_version"]:
            yield f"cost      {money_text(row['cost_nano'])}, at the price {row['price_version']}"
    for act in trace["acts"]:
        yield f"act       {act['action']} {act['subject']} by {act['actor']}"
    payload = trace["payload"]
    kept = "no" if payload is None else f"for {payload['subject']} until {_day(payload['expires'])}"
    yield f"texts     kept: {kept}"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
