"""What keys cost as they become many: making, looking up, listing, and starting a gateway beside them.

    python packages/gateway/benchmarks/keys.py --counts 10 1000 100000
    python packages/gateway/benchmarks/keys.py --store-url postgresql://user:password@host/empty

Each line is one store with that many keys; times are medians in microseconds. The last line is all of it as JSON.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from deepseek_gateway.auth.directory import KeyDirectory
from deepseek_gateway.auth.drafts import KeyDraft
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.settings import load_settings
from deepseek_gateway.state_dir import open_store, prepare_state
from deepseek_gateway.storage.keys import KeyFilter
from deepseek_gateway.storage.paging import Cursor

LOOK_UPS = 500


@dataclass(frozen=True, slots=True)
class Figures:
    """One store."""

    keys: int
    created_per_s: float
    find_us: float
    find_p99_us: float
    authenticate_cold_us: float
    authenticate_warm_us: float
    page_us: float
    last_page_us: float
    start_ms: float


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 1000, 100_000])
    parser.add_argument("--store-url", help="an empty PostgreSQL database, for one count; else SQLite")
    parsed = parser.parse_args()
    if parsed.store_url is not None and len(parsed.counts) > 1:
        parser.error("with --store-url give one of --counts: the keys of the last would be there")
    titles = list(Figures.__dataclass_fields__)
    print("  ".join(titles))
    found: list[Figures] = []
    for count in parsed.counts:
        with tempfile.TemporaryDirectory() as folder:
            figures = asyncio.run(measure(Path(folder) / "state", count, parsed.store_url))
        found.append(figures)
        values = (f"{value:,.0f}" for value in asdict(figures).values())
        print("  ".join(value.rjust(len(title)) for title, value in zip(titles, values, strict=True)), flush=True)
    print(json.dumps([asdict(figures) for figures in found]))


async def measure(state_dir: Path, count: int, store_url: str | None) -> Figures:
    """Fill a store and measure it."""
    loaded = load_settings(state_dir=state_dir, store_url=store_url, upstreams="http://127.0.0.1:9")
    prepare_state(loaded)
    store, pepper = open_store(loaded)
    service = KeyService(store, pepper)
    began = time.perf_counter()
    issued = list(service.create_many(Principal.operator(), KeyDraft(name="bench", tags=["bench"]), count))
    created_s = time.perf_counter() - began
    chosen = random.Random(0).choices(issued, k=LOOK_UPS)
    finds = timed([lambda key=key: store.keys.find(key.record.public_id) for key in chosen])
    last = max(issued, key=lambda key: (key.record.created, key.record.public_id)).record
    at = Cursor(last.created, issued[count // 2].record.public_id)
    pages = timed([lambda: store.keys.page(KeyFilter(), time.time(), None, 50)] * 20)
    late_pages = timed([lambda: store.keys.page(KeyFilter(tag="bench"), time.time(), at, 50)] * 20)
    with ThreadPoolExecutor(4) as executor:
        directory = KeyDirectory(store, pepper, 5.0, executor)
        cold, warm = [[await authenticated_us(directory, f"Bearer {key.text}") for key in chosen] for _ in range(2)]
    store.close()
    began = time.perf_counter()
    async with Gateway(loaded):
        start_s = time.perf_counter() - began
    return Figures(
        keys=count,
        created_per_s=count / created_s,
        find_us=statistics.median(finds),
        find_p99_us=statistics.quantiles(finds, n=100)[98],
        authenticate_cold_us=statistics.median(cold),
        authenticate_warm_us=statistics.median(warm),
        page_us=statistics.median(pages),
        last_page_us=statistics.median(late_pages),
        start_ms=start_s * 1000,
    )


def timed(calls: list[Callable[[], object]]) -> list[float]:
    """Microseconds of each call."""
    times: list[float] = []
    for call in calls:
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1e6)
    return times


async def authenticated_us(directory: KeyDirectory, header: str) -> float:
    """Microseconds of one authentication."""
    began = time.perf_counter()
    await directory.authenticate(header)
    return (time.perf_counter() - began) * 1e6


if __name__ == "__main__":
    main()
