"""The lines of an answer as JSON and CSV, for the admin API, the command and the pages."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek_gateway.money.amounts import money_text
from deepseek_gateway.usage.question import Dimension, UsageLine

NUMBERS = (
    *("requests", "failed", "prompt_tokens", "cached_tokens"),
    *("completion_tokens", "reasoning_tokens", "total_tokens"),
)


def json_of(by: Sequence[Dimension], line: UsageLine, names: Mapping[str, str]) -> dict[str, Any]:
    """One line: its values by the fields of its dimensions, with names beside ids, and the sums."""
    told: dict[str, Any] = {}
    for dimension, label in zip(by, line.labels, strict=True):
        told[dimension.field] = label
        if dimension.is_named:
            told[f"{dimension.value}_name"] = names.get(label, "")
    return {**told, **{name: getattr(line, name) for name in NUMBERS}, "cost_nano": line.cost_nano}


def csv_of(by: Sequence[Dimension], lines: Sequence[UsageLine], names: Mapping[str, str], currency: str) -> str:
    """CSV with a header; a key has its id and its name."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    titles = [
        column for part in by for column in ((part.value, f"{part.value}_name") if part.is_named else (part.value,))
    ]
    writer.writerow([*titles, *NUMBERS, f"cost_{currency.lower()}"])
    for line in lines:
        labels: list[str] = []
        for part, label in zip(by, line.labels, strict=True):
            labels += [label, names.get(label, "")] if part.is_named else [label]
        writer.writerow(
            [*map(safe_cell, labels), *(getattr(line, name) for name in NUMBERS), money_text(line.cost_nano)]
        )
    return out.getvalue()


def safe_cell(text: str) -> str:
    """A text that spreadsheets take for a text: what could begin a formula is quoted.

    Source: OWASP, "CSV Injection".
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")) else text
