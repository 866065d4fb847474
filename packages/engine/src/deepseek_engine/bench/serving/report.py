"""The table on stdout and the JSON file."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import deepseek_engine
from deepseek_engine.bench.serving.record import Record
from deepseek_engine.bench.serving.summary import PERCENTILES, Latency, Summary

_LATE_MS: Final = 10.0
"""Past this the load generator was itself too slow, and says so."""
_NAMES: Final = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2e": "end to end",
}


def table(summary: Summary) -> str:
    """The report for a person."""
    lines = [
        f"{summary.num_whole} of {summary.num_planned} requests whole in {summary.duration_s:.2f} s, "
        f"{summary.mean_concurrency:.1f} under way on average",
        f"requests {summary.rate(summary.num_whole):.2f}/s   prompt tokens {summary.rate(summary.prompt_tokens):.1f}/s"
        f"   output tokens {summary.rate(summary.output_tokens):.1f}/s",
    ]
    if summary.good is not None:
        goals = ", ".join(f"{name} <= {most:g} ms" for name, most in summary.goals_ms.items())
        share = 100 * summary.good / summary.num_sent if summary.num_sent else 0.0
        lines.append(f"goodput {summary.rate(summary.good):.2f} requests/s: {share:.1f} % of those sent had {goals}")
    columns = ["mean", *(f"p{percent}" for percent in PERCENTILES), "greatest"]
    lines += ["", f"{'milliseconds':<28}" + "".join(f"{name:>11}" for name in columns)]
    lines += [_row(f"{title} ({name})", summary.latencies[name]) for name, title in _NAMES.items()]
    return "\n".join([*lines, "", *_remarks(summary)]).rstrip()


def _row(title: str, values: Latency) -> str:
    numbers = [values.mean, *values.percentiles.values(), values.greatest]
    shown = "".join(f"{number:>11.1f}" if values.count else f"{'-':>11}" for number in numbers)
    return f"{title:<28}{shown}"


def _remarks(summary: Summary) -> list[str]:
    lines = [
        f"failed: {count} x {kind}: {summary.details[kind]}".rstrip(": ")
        for kind, count in sorted(summary.failures.items(), key=lambda each: -each[1])
    ]
    if summary.num_sent < summary.num_planned:
        lines.append(f"never sent: {summary.num_planned - summary.num_sent} requests, as the benchmark was stopped")
    if summary.num_uncounted:
        lines.append(f"{summary.num_uncounted} answers came without usage: their events are counted as tokens")
    if summary.late_ms.percentiles[99] > _LATE_MS:
        late = f"{summary.late_ms.greatest:.0f} ms late (p99 {summary.late_ms.percentiles[99]:.0f} ms)"
        lines.append(
            f"requests were sent up to {late}: the load generator lacks CPU; latencies count from the due time"
        )
    return lines


def document(settings: Mapping[str, Any], summary: Summary, records: Sequence[Record] = ()) -> dict[str, Any]:
    """The report for a program; with records, each request's times as well."""
    made: dict[str, Any] = {
        "benchmark": "serving",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "version": deepseek_engine.__version__,
        "settings": dict(settings),
        "summary": summary.to_json(),
    }
    if records:
        made["requests"] = [_request(record) for record in records]
    return made


def _request(record: Record) -> dict[str, Any]:
    return {
        "index": record.index,
        "due_s": record.due_s,
        "sent_s": record.sent_s,
        "first_token_s": record.token_s[0] if record.token_s else None,
        "end_s": record.end_s,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "tpot_ms": record.tpot_ms if record.token_s else None,
        "failure": record.failure,
        "detail": record.detail,
    }


def write_json(path: Path, made: Mapping[str, Any]) -> None:
    """Write the document.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
