"""How long answers about usage take on a large ledger in SQLite: with hourly sums, and from the rows.

    python packages/gateway/benchmarks/usage.py --rows 2000000

Rows of one month, at random: keys by a long-tailed rank, each with its owners, one or two models, and these models'
engines. Medians of wall and CPU time: on a busy machine only the latter says something.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.storage.store import Store, migrate_store, open_store
from deepseek_gateway.usage.question import Dimension, Question
from deepseek_gateway.usage.zones import HOUR_S

SINCE = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp())
HOURS = 31 * 24
UNTIL = SINCE + HOURS * HOUR_S
BATCH = 5000

D = Dimension
QUESTIONS = {
    "by day": Question(by=(D.DAY,)),
    "by model and day": Question(by=(D.MODEL, D.DAY)),
    "by org, Shanghai's days": Question(by=(D.DAY, D.ORG), zone="Asia/Shanghai"),
    "by upstream, status, reason": Question(by=(D.UPSTREAM, D.STATUS, D.REASON)),
    "by key": Question(by=(D.KEY,)),
    "by key and day": Question(by=(D.KEY, D.DAY)),
    "of one key by day": Question(by=(D.DAY,), only=((D.KEY, "key-000"),)),
    "by key and upstream (rows)": Question(by=(D.KEY, D.UPSTREAM)),
}


def rows_of(count: int, keys: int, rng: random.Random) -> Iterator[LedgerRow]:
    """So many rows, in the order of their time."""
    weights = [1 / (rank + 3) for rank in range(keys)]
    for number in range(count):
        (key,) = rng.choices(range(keys), weights)
        model = (key + (rng.random() < 0.2)) % 5
        failed = rng.random() < 0.02
        yield LedgerRow(
            request_id=f"req-{number}",
            attempt=1,
            key_id=f"key-{key:03}",
            route=("/v1/chat/completions", "/v1/generate")[key % 3 == 0],
            model=f"model-{model}",
            upstream=f"http://engine-{model}-{rng.randrange(2)}:8000",
            stream=True,
            status="failed" if failed else "finished",
            end_reason="upstream_error" if failed else rng.choice(("stop", "stop", "stop", "length")),
            http_status=502 if failed else 200,
            prompt_tokens=rng.randrange(20, 4000),
            completion_tokens=rng.randrange(1, 800),
            cached_tokens=0,
            accuracy="exact",
            latency_ms=rng.random() * 9000,
            ttft_ms=rng.random() * 400,
            created=SINCE + (number + rng.random()) * HOURS * HOUR_S / count,
            org_id=f"org-{key % 10}",
            team_id=f"team-{key % 30}",
            user_id=f"user-{key}",
            cost_nano=0,
            served_model=f"served-{model}",
        )


def fill(store: Store, count: int, keys: int) -> float:
    """Fill a ledger; gives seconds."""
    began, batch = time.perf_counter(), list[LedgerRow]()
    for row in rows_of(count, keys, random.Random(7)):
        batch.append(row)
        if len(batch) == BATCH:
            store.ledger.insert(batch)
            batch.clear()
    store.ledger.insert(batch)
    return time.perf_counter() - began


def roll(store: Store) -> float:
    """Make all sums; gives seconds."""
    began = time.perf_counter()
    for hour in store.rollups.due(UNTIL // HOUR_S + 1):
        store.rollups.roll(hour)
    return time.perf_counter() - began


def times(store: Store, repeats: int) -> dict[str, tuple[float, float]]:
    """The median seconds of each question: wall, CPU."""
    found: dict[str, tuple[float, float]] = {}
    for name, question in QUESTIONS.items():
        took: list[tuple[float, float]] = []
        for _ in range(repeats):
            began = time.perf_counter(), time.process_time()
            store.usage.answer(question, timeout_s=600)
            took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
        wall, cpu = zip(*took, strict=True)
        found[name] = statistics.median(wall), statistics.median(cpu)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parsed = parser.parse_args()
    size = parsed.rows, parsed.keys
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite3"
        migrate_store(path, None)
        store = open_store(path, None)
        print(f"{parsed.rows} rows of {parsed.keys} keys in 31 days, filled in {fill(store, *size):.0f} s")
        before = times(store, parsed.repeats)
        print(f"{roll(store):.1f} s to make the sums of {HOURS} hours")
        for table in ("usage_hours", "usage_key_hours"):
            print(f"{store.database.read(f'SELECT count(*) FROM {table}')[0][0]} rows in {table}")  # noqa: S608
        after = times(store, parsed.repeats)
        print(f"{'seconds':30} {'rows':>8} {'(CPU)':>8} {'sums':>8} {'(CPU)':>8}")
        for name, seconds in before.items():
            print(f"{name:30}", *(f"{each:8.3f}" for each in (*seconds, *after[name])))
        store.close()


if __name__ == "__main__":
    main()
