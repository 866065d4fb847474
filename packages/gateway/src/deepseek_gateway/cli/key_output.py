"""How keys are shown: their texts once, the rest as often as one likes."""

import csv
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.auth.service import IssuedKey
from deepseek_gateway.cli.common import date_text, table
from deepseek_gateway.errors import ConfigurationError

TITLES: Final = (
    *("id", "name", "scopes", "state", "org", "models", "rpm", "tpm", "concurrent", "per month"),
    *("expires", "last used", "created"),
)
CSV_COLUMNS: Final = ("id", "name", "key", "org_id", "team_id", "user_id")
_WITHOUT: Final = {"models": "all", "cidrs": "any", "expires": "never"}
_TIMES: Final = ("created", "expires", "disabled", "revoked", "last_used", "previous_secret_until")


def with_text(issued: IssuedKey) -> dict[str, object]:
    """A new key as JSON, with its text."""
    return {"key": issued.text, **issued.record.to_json(time.time())}


def print_key(key: Mapping[str, object], *, as_json: bool, text: str | None = None) -> None:
    """One key; with its text where it is new."""
    if as_json:
        print(json.dumps(key))
    elif text is not None:
        print(text)
        print(f"This is the only time that the key {key['id']} ({key['name']}) is shown.")
    else:
        print(table(("field", "value"), [(name, _shown(name, value)) for name, value in key.items()]))


def print_keys(records: Sequence[KeyRecord], *, as_json: bool) -> None:
    """A list of keys."""
    now = time.time()
    if as_json:
        print(json.dumps([record.to_json(now) for record in records]))
    else:
        print(table(TITLES, [_row(record, now) for record in records]))


def write_csv(path: Path, issued: Iterable[IssuedKey]) -> int:
    """Write new keys to a file that only its owner may read, as they are made; gives how many.

    Raises:
        ConfigurationError: the file is there already, or cannot be written. Nothing was made then.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigurationError(f"{path} is there already: keys are never written over something") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    written = 0
    with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for key in issued:
            record = key.record
            owners = (record.org_id or "", record.team_id or "", record.user_id or "")
            writer.writerow((record.public_id, _cell(record.name), key.text, *owners))
            written += 1
    return written


def _cell(text: str) -> str:
    # A spreadsheet would take such a name for a formula.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _row(record: KeyRecord, now: float) -> list[object]:
    limits = ["-" if value is None else str(value) for value in record.limits.to_json().values()]
    models = "all" if record.models is None else ",".join(record.models) or "none"
    head = [record.public_id, record.name, ",".join(sorted(record.scopes)), record.state(now), record.org_id or "-"]
    return [*head, models, *limits, *(date_text(at) for at in (record.expires, record.last_used, record.created))]


def _shown(name: str, value: object) -> str:
    if name in _TIMES and isinstance(value, float):
        return date_text(value)
    if value is None:
        return _WITHOUT.get(name, "-")
    if isinstance(value, dict):
        given = cast("dict[str, object]", value).items()
        return ", ".join(f"{limit} {number}" for limit, number in given if number is not None) or "none"
    return ", ".join(cast("list[str]", value)) or "none" if isinstance(value, list) else str(value)
