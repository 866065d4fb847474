"""What the commands share: flags that are settings, the opened store, tables."""

import argparse
import contextlib
import logging
import re
import time
from argparse import ArgumentParser
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from deepseek_gateway.auth import acts
from deepseek_gateway.auth.fields import Draft, refusal
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.people.service import PeopleService
from deepseek_gateway.settings import ConfigSource, Settings
from deepseek_gateway.state_dir import open_store
from deepseek_gateway.storage.paging import Cursor
from deepseek_gateway.storage.store import Store

Item = TypeVar("Item")
DraftType = TypeVar("DraftType", bound=Draft)


class Commands(Protocol):
    """Where a command adds its parser: what `argparse.add_subparsers` gives."""

    def add_parser(self, name: str, *, help: str, epilog: str | None = None) -> argparse.ArgumentParser:  # noqa: A002
        """A parser for the command `name`."""
        ...


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_state_flag(parser: argparse.ArgumentParser) -> None:
    """`--state`, the directory of store, journal and pepper, and `--config`."""
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory (GATEWAY_STATE_DIR)")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file (GATEWAY_CONFIG, else gateway.toml in DIR)",
    )


def add_listen_flags(parser: argparse.ArgumentParser) -> None:
    """`--host`, `--port` and `--log-level`."""
    parser.add_argument("--host", help="address to listen on (GATEWAY_HOST, 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on, 0 for any free one (GATEWAY_PORT, 8080)")
    parser.add_argument("--log-level", help="debug, info, warning or error (GATEWAY_LOG_LEVEL, info)")


def settings_of(parsed: argparse.Namespace) -> Settings:
    """Settings from the flags that a command has, then from variables and the file."""
    return source_of(parsed).load()


FLAGS = ("host", "port", "log_level", "workers", "worker")
"""Of commands that have them: each is a setting."""


def source_of(parsed: argparse.Namespace) -> ConfigSource:
    """Where a command has its settings from."""
    flags: dict[str, object] = {name: getattr(parsed, name, None) for name in FLAGS}
    upstreams: list[str] | None = getattr(parsed, "upstream", None)
    flags |= {"state_dir": parsed.state, "upstreams": ",".join(upstreams) if upstreams else None}
    return ConfigSource(parsed.config, flags)


@dataclass(frozen=True, slots=True)
class Administration:
    """What commands administer with: the rules of the services, as whoever runs the command."""

    by: Principal
    store: Store
    keys: KeyService
    people: PeopleService


@contextlib.contextmanager
def administering(parsed: argparse.Namespace) -> Generator[Administration]:
    """The services of the state directory's store, for as long as the block runs."""
    log = logging.getLogger(acts.__name__)
    level = log.level
    log.setLevel(logging.WARNING)  # who runs a command sees what it did
    try:
        with opened(settings_of(parsed)) as (store, keys):
            yield Administration(Principal.operator(), store, keys, PeopleService(store))
    finally:
        log.setLevel(level)


def add_action(actions: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str) -> ArgumentParser:
    """A parser for one action of a command, with `--state` and `--json`."""
    parser = actions.add_parser(name, help=text)
    add_state_flag(parser)
    parser.add_argument("--json", action="store_true", help="JSON, for programs")
    parser.set_defaults(run=run)
    return parser


def checked(draft: type[DraftType], fields: Mapping[str, object]) -> DraftType:
    """A draft of these fields.

    Raises:
        ApiError: one is wrong; the message names it.
    """
    try:
        return draft.model_validate(fields)
    except ValidationError as error:
        raise refusal(error) from None


def words(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def all_pages(page: Callable[[Cursor | None], tuple[list[Item], Cursor | None]], limit: int | None) -> list[Item]:
    """Entries of a list, page by page: all, or the first `limit`."""
    found, after = page(None)
    while after is not None and (limit is None or len(found) < limit):
        more, after = page(after)
        found += more
    return found[:limit]


@contextlib.contextmanager
def opened(settings: Settings) -> Generator[tuple[Store, KeyService]]:
    """The store and its keys, for as long as the block runs."""
    store, pepper = open_store(settings)
    try:
        yield store, KeyService(store, pepper)
    finally:
        store.close()


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under titles; numbers to the right."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(len(title), *(len(row[at]) for row in cells), 0) for at, title in enumerate(titles)]
    is_number = [bool(rows) and all(isinstance(row[at], int) for row in rows) for at in range(len(titles))]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, is_number, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(titles), *(line(row) for row in cells)])


def date_text(seconds: float | None) -> str:
    """A Unix time in UTC, to the minute; `-` for none."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def parse_count(text: str) -> int:
    """A whole number from 1."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `15m`, `24h` or `30d`."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 90s, 15m, 24h or 30d")
    return int(match[1]) * _SECONDS[match[2]]


def parse_moment(text: str, *, direction: int = 1) -> float:
    """The Unix time of a date (2027-01-31; UTC unless it says otherwise), or of a duration from now (30d)."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        pass
    try:
        return time.time() + direction * parse_duration(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date like 2027-01-31 and no duration like 30d") from None


def parse_past(text: str) -> float:
    """The same, with durations before now: `7d` is a week ago."""
    return parse_moment(text, direction=-1)


def parse_day(text: str) -> float:
    """The Unix time at which a day (2026-11-23) begins in UTC."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: write 2026-11-23") from None
