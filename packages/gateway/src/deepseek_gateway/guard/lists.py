"""Word lists as files: CSV with named columns, JSON lines, or one pattern a line."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Literal, cast

from deepseek_gateway.guard.entries import Direction, Entry, Level, Match, WordListError

Format = Literal["csv", "jsonl", "text"]

MAX_ENTRIES = 200_000
COLUMNS = tuple(field.name for field in fields(Entry))
_MAX_FAULTS = 10


def format_of(name: str, text: str = "") -> Format:
    """The format that a file's name tells, or else its first line: a line of columns or an object is no pattern."""
    ending = name.rpartition(".")[2].lower()
    first = text.removeprefix("\ufeff").lstrip().partition("\n")[0].strip()
    titles = {title.strip() for title in first.split(",")}
    if ending in {"jsonl", "ndjson", "json"} or first.startswith('{"pattern"'):
        return "jsonl"
    return "csv" if ending == "csv" or ("pattern" in titles and titles <= {*COLUMNS}) else "text"


def read_list(text: str, form: Format, default: Level = Level.BLOCK) -> list[Entry]:
    """All entries of a file; what stands twice counts once. Lines that begin with # are comments in text files.

    Raises:
        WordListError: lines are wrong; the message shows the first ten.
    """
    found: dict[tuple[str, str, str], Entry] = {}
    faults: list[str] = []
    for number, row in _rows(text.removeprefix("\ufeff"), form):
        try:
            if isinstance(row, WordListError):
                raise row
            entry = _entry(row, default)
            found.setdefault((entry.pattern, entry.match, entry.direction), entry)
        except WordListError as error:
            faults.append(f"line {number}: {error}")
        if len(found) > MAX_ENTRIES:
            raise WordListError(f"more than {MAX_ENTRIES} entries: make several lists")
    if faults:
        more = f"\nand {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
        raise WordListError("\n".join(faults[:_MAX_FAULTS]) + more)
    if not found:
        raise WordListError("the list is empty: to switch a list off use `words activate NAME off`")
    return list(found.values())


def write_list(entries: Iterable[Entry], form: Format) -> str:
    """The entries as a file that `read_list` reads back; as text, patterns alone."""
    if form == "text":
        return "".join(f"{entry.pattern}\n" for entry in entries)
    if form == "jsonl":
        return "".join(json.dumps(_shown(entry), ensure_ascii=False) + "\n" for entry in entries)
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: "" if value is None else value for name, value in _shown(entry).items()} for entry in entries
    )
    return out.getvalue()


def demonstration() -> list[Entry]:
    """The small list that comes with the gateway: harmless words, one of each kind."""
    text = files("deepseek_gateway.guard").joinpath("data/demonstration.csv").read_text("utf-8")
    return read_list(text, "csv")


def _rows(text: str, form: Format) -> Iterator[tuple[int, dict[str, Any] | WordListError]]:
    if form == "text":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                yield number, {"pattern": line.strip()}
    elif form == "jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _json_row(line)
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval="")
        if "pattern" not in (reader.fieldnames or ()):
            raise WordListError(f"line 1: a CSV list begins with the names of its columns: {','.join(COLUMNS)}")
        for row in reader:
            yield reader.line_num, cast("dict[str, Any]", row)


def _json_row(line: str) -> dict[str, Any] | WordListError:
    try:
        row = json.loads(line)
    except ValueError as error:
        return WordListError(f"no JSON: {error}")
    return cast("dict[str, Any]", row) if isinstance(row, dict) else WordListError("no JSON object")


def _entry(row: dict[str, Any], default: Level) -> Entry:
    unknown = [name for name in row if name not in COLUMNS]
    if unknown:
        raise WordListError(f"unknown column {unknown[0]!r}: there are {', '.join(COLUMNS)}")
    given = {name: value for name, value in row.items() if value not in {None, ""}}
    if not isinstance(given.get("pattern"), str):
        raise WordListError("no pattern")
    try:
        entry = Entry(
            pattern=given["pattern"],
            level=Level(given.get("level", default)),
            category=str(given.get("category", "")),
            direction=Direction(given.get("direction", Direction.BOTH)),
            match=Match(given.get("match", Match.SUBSTRING)),
            language=str(given.get("language", "")),
            valid_from=_moment(given.get("valid_from")),
            valid_until=_moment(given.get("valid_until")),
            source=str(given.get("source", "")),
        )
    except (ValueError, TypeError) as error:
        kinds = "; ".join(f"{kind.__name__.lower()}: {', '.join(kind)}" for kind in (Level, Direction, Match))
        raise WordListError(f"pattern {given['pattern']!r}: {error} ({kinds}; moments: 2027-01-31)") from None
    entry.check()
    return entry


def _moment(value: object) -> float | None:
    if value is None or isinstance(value, int | float):
        return value
    moment = datetime.fromisoformat(str(value))
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _shown(entry: Entry) -> dict[str, Any]:
    values = asdict(entry)
    for name in ("valid_from", "valid_until"):
        if values[name] is not None:
            values[name] = datetime.fromtimestamp(values[name], UTC).isoformat()
    return {name: str(value) if isinstance(value, str) else value for name, value in values.items()}
