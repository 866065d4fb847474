"""The newest lives of a key or of an organisation.

Lives have no index by either: each would cost every request a page of its own. Those of requests that the ledger has
are found by its index of keys; refusals, which it has not, by small indexes of their own; and what is left where rows
were deleted before lives, hour by hour of the sums that stay.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from deepseek_gateway.audit.life import Life
from deepseek_gateway.storage.database import Database, Row
from deepseek_gateway.storage.owners import OwnerTable
from deepseek_gateway.usage.zones import HOUR_S

SELECT_LIVES = "SELECT request_id, client_request_id, key_id, org_id, created, life FROM request_lives"

MAX_MERGED = 200
"""Keys of an organisation whose newest rows are looked up one by one; with more, its lives are soon met in time."""

_HOURS = {"key_id": "usage_key_hours", "org_id": "usage_hours"}


@dataclass(frozen=True, slots=True)
class LifeFilter:
    """Which lives: of a key, of an organisation, created before a Unix time, of an outcome; None is any.

    `told` is a pattern of the JSON of lives with the outcome; `status` is that of their ledger rows, if any.
    """

    key_id: str | None
    org_id: str | None
    before: float | None
    told: str | None = None
    status: str | None = None

    @property
    def has_rows(self) -> bool:
        """Whether the ledger may have rows of such lives."""
        return self.told is None or self.status is not None

    def of_rows(self) -> list[str]:
        """SQL conditions on ledger rows."""
        return [*self._of_both(), *(["status = :status"] if self.status is not None else [])]

    def of_lives(self) -> list[str]:
        """SQL conditions on lives."""
        return [*self._of_both(), *(["life LIKE :told"] if self.told is not None else [])]

    def read(self, database: Database, sql: str, *, is_scan: bool = False, **values: object) -> list[Row]:
        """Rows of a statement with these conditions; where it looks at many, it does so beside all look-ups."""
        read = database.report if is_scan or self.told is not None else database.read
        return read(sql, {**asdict(self), **values})

    def _of_both(self) -> list[str]:
        given = {"key_id = :key_id": self.key_id, "org_id = :org_id": self.org_id, "created < :before": self.before}
        return [condition for condition, value in given.items() if value is not None]


def newest_lives(database: Database, owners: OwnerTable, wanted: LifeFilter, limit: int) -> list[Life]:
    """Lives that fit, the newest first."""
    keys = [wanted.key_id] if wanted.key_id is not None else None
    if keys is None and wanted.org_id is not None and wanted.told is None:
        keys = owners.keys(f"org:{wanted.org_id}", MAX_MERGED + 1)
    if keys is None or len(keys) > MAX_MERGED:
        return list(_lives(database, wanted, [], limit, is_scan=wanted.org_id is not None))
    named = [row for key_id in keys if wanted.has_rows for row in _rows(database, wanted, key_id, limit)]
    ids = [request_id for _, request_id in sorted(named, reverse=True)[:limit]]
    found = _newest([*_by_ids(database, ids), *_lives(database, wanted, ["apart IS NOT NULL"], limit)], limit)
    floor = int(database.read("SELECT hour FROM usage_floor")[0][0])
    if not wanted.has_rows or (len(found) == limit and found[-1].created >= floor * HOUR_S):
        return found
    return _newest([*found, *_without_rows(database, wanted, floor, limit)], limit)


def _rows(database: Database, wanted: LifeFilter, key_id: str, limit: int) -> list[tuple[float, str]]:
    """The newest ledger rows of a key: when, and the request."""
    where = " AND ".join({"key_id = :key_id": None, **dict.fromkeys(wanted.of_rows())})
    sql = f"SELECT created, request_id FROM ledger WHERE {where} ORDER BY created DESC LIMIT :limit"  # noqa: S608  fixed
    rows = wanted.read(database, sql, key_id=key_id, limit=limit)
    return [(float(created), request_id) for created, request_id in rows]


def _lives(
    database: Database, wanted: LifeFilter, conditions: Iterable[str], limit: int, *, is_scan: bool = False
) -> Iterator[Life]:
    given = [*conditions, *wanted.of_lives()]
    where = f"WHERE {' AND '.join(given)}" if given else ""
    sql = f"{SELECT_LIVES} {where} ORDER BY created DESC LIMIT :limit"
    return (Life(*row) for row in wanted.read(database, sql, is_scan=is_scan, limit=limit))


def _by_ids(database: Database, ids: list[str]) -> Iterator[Life]:
    for at in range(0, len(ids), 500):  # SQLite takes 999 parameters where it is old
        values = {f"id{number}": request_id for number, request_id in enumerate(ids[at : at + 500])}
        sql = f"{SELECT_LIVES} WHERE request_id IN ({', '.join(f':{name}' for name in values)})"
        yield from (Life(*row) for row in database.read(sql, values))


def _without_rows(database: Database, wanted: LifeFilter, floor: int, limit: int) -> Iterator[Life]:
    """Lives of hours before the one from which on the ledger has rows."""
    column = "key_id" if wanted.key_id is not None else "org_id"
    before = floor if wanted.before is None else min(floor, int(wanted.before // HOUR_S) + 1)
    oldest = database.read("SELECT min(created) FROM request_lives")[0][0]
    since = before if oldest is None else int(oldest // HOUR_S)
    if since >= before:
        return
    sql = (
        f"SELECT DISTINCT hour FROM {_HOURS[column]} WHERE {column} = :{column} "  # noqa: S608  fixed names
        "AND hour >= :since AND hour < :end ORDER BY hour DESC"
    )
    for (hour,) in database.read(sql, {**asdict(wanted), "since": since, "end": before}):
        within = [f"created >= {int(hour) * HOUR_S}", f"created < {(int(hour) + 1) * HOUR_S}", "apart IS NULL"]
        found = list(_lives(database, wanted, within, limit))
        yield from found
        limit -= len(found)
        if limit <= 0:
            return


def _newest(lives: Iterable[Life], limit: int) -> list[Life]:
    once = {life.request_id: life for life in lives}
    return sorted(once.values(), key=lambda life: life.created, reverse=True)[:limit]
