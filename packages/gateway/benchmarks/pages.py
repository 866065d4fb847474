"""What a commit of requests writes: pages of SQLite's log by table and index, or bytes of PostgreSQL's log.

    python packages/gateway/benchmarks/pages.py
    python packages/gateway/benchmarks/pages.py --store-url postgresql://user:password@host/empty

So many requests are there before, of keys by a long-tailed rank, each with its organisation, team and user. Counts do
not depend on how busy the machine is. Point PostgreSQL at a database that nobody else writes to.
"""

import argparse
import itertools
import random
import sqlite3
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from deepseek_gateway.audit.trail import Trail
from deepseek_gateway.auth.keys import random_base62, random_name
from deepseek_gateway.edge.request_ids import TAIL_LENGTH
from deepseek_gateway.ledger.records import LedgerRow, Settled
from deepseek_gateway.storage.books import BATCH
from deepseek_gateway.storage.store import Store, migrate_store, open_store

RATE = 50.0
"""Requests a second."""


class Requests:
    """Requests one after the other, the last of them about now."""

    def __init__(self, before: int, keys: int) -> None:
        self._rng = random.Random(5)
        self._at_s = time.time() - before / RATE
        self._keys = [random_base62(12) for _ in range(keys)]
        self._weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(keys)))

    def take(self, count: int) -> list[Settled]:
        """The next ones."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Settled:
        self._at_s += 1 / RATE
        (key,) = self._rng.choices(range(len(self._keys)), cum_weights=self._weights)
        row = LedgerRow(
            request_id=f"req-{int(self._at_s * 1000):011x}{random_name()[:TAIL_LENGTH]}", attempt=1,
            key_id=self._keys[key], route="/v1/chat/completions", model="deepseek-v2-lite",
            upstream=f"http://10.0.0.{key % 4}:8000", stream=True, status="finished", end_reason="stop",
            http_status=200, prompt_tokens=self._rng.randrange(20, 4000), completion_tokens=self._rng.randrange(1, 800),
            cached_tokens=0, accuracy="exact", latency_ms=round(self._rng.random() * 9000, 3),
            ttft_ms=round(self._rng.random() * 400, 3), created=self._at_s, org_id=f"org-{key % 20:06}",
            team_id=f"team-{key % 60:06}", user_id=f"user-{key // 3:06}", cost_nano=1000, price_version="v1",
            served_model="dsv2",
        )  # fmt: skip
        return Settled(row, Trail(None, "cfg-1234567890", "words-1"))


def pages_by_name(path: Path, work: Callable[[], None]) -> tuple[Counter[str], int]:
    """Frames that work adds to the log, by table or index; and how many pages these are."""
    watch = sqlite3.connect(path, isolation_level=None)
    watch.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    reading = sqlite3.connect(path, isolation_level=None)
    reading.execute("BEGIN")
    reading.execute("SELECT count(*) FROM meta").fetchall()  # the log is not begun anew while somebody reads
    work()
    names = {number: name for name, number in watch.execute("SELECT name, pageno FROM dbstat")}
    (size,) = watch.execute("PRAGMA page_size").fetchone()
    log = path.with_name(f"{path.name}-wal").read_bytes()
    numbers = [struct.unpack_from(">I", log, at)[0] for at in range(32, len(log) - 24, 24 + size)]
    reading.close()
    watch.close()
    return Counter(names.get(number, "(free)") for number in numbers), len(set(numbers))


def main() -> None:
    """Print what is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store-url", help="an empty PostgreSQL database; else SQLite")
    for name, default in (("before", 100_000), ("keys", 1000), ("commits", 100), ("per-commit", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parsed = parser.parse_args()
    requests, count = Requests(parsed.before, parsed.keys), parsed.commits * parsed.per_commit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite3"
        migrate_store(path, parsed.store_url)
        store = open_store(path, parsed.store_url)
        for _ in range(0, parsed.before, BATCH):
            store.books.keep(requests.take(BATCH))

        def work() -> None:
            for _ in range(parsed.commits):
                store.books.keep(requests.take(parsed.per_commit))

        if parsed.store_url is not None:
            print(f"{log_bytes(store, work) / count:,.0f} bytes of PostgreSQL's log a request")
        else:
            frames, distinct = pages_by_name(path, work)
            total = frames.total()
            shares = f"{total / count:.2f} a request ({distinct / count:.2f} of its own)"
            print(f"{total / parsed.commits:.1f} pages a commit, {shares}")
            for name, number in frames.most_common():
                print(f"  {name:40} {number / parsed.commits:6.2f} a commit")
        store.close()


def log_bytes(store: Store, work: Callable[[], None]) -> float:
    """Bytes that work adds to PostgreSQL's log."""
    (before,) = store.database.read("SELECT CAST(pg_current_wal_lsn() AS TEXT)")[0]
    work()
    sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), CAST(:before AS pg_lsn))"
    return float(store.database.read(sql, {"before": before})[0][0])


if __name__ == "__main__":
    main()
