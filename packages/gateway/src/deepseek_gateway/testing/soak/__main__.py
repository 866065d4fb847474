"""Half an hour of mixed load with faults: does anything leak, is anything billed wrong, is any limit exceeded?

    python -m deepseek_gateway.testing.soak --minutes 30 [--callers 24] [--no-redis] [--no-postgres]

One gateway process stands before two engines that count their own truth: a steady one, and one that is killed.
PostgreSQL and Redis take part where they are installed, and the wall clock where there is a C compiler. A fault comes
every few seconds; the gateway is not restarted. Of the callers, 10,000 in half an hour leave their streams. It ends in
a table of promises and one line of JSON; the exit status is 0 when all are kept.
"""

import argparse
import asyncio
import json
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

from deepseek_gateway.testing.soak.faults import inject_all, within
from deepseek_gateway.testing.soak.load import leave, load, stay_stuck
from deepseek_gateway.testing.soak.rig import Rig, rig_for
from deepseek_gateway.testing.soak.verdict import Promise, table, verdict

DISCONNECTS_PER_MINUTE = 10_000 / 30


def main() -> int:
    """Start everything, soak, stop everything."""
    parser = argparse.ArgumentParser(
        prog="python -m deepseek_gateway.testing.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--no-redis", action="store_true")
    parser.add_argument("--no-postgres", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(prefix="gw-soak-") as folder, rig_for(options, Path(folder)) as rig:
        promises = asyncio.run(soak(rig, options.minutes, options.callers))
        _print(rig, options.minutes, promises)
    return 0 if all(promise.is_kept for promise in promises) else 1


async def soak(rig: Rig, minutes: float, callers: int) -> list[Promise]:
    """Load, faults, verdict."""
    wanted = round(DISCONNECTS_PER_MINUTE * minutes)
    async with rig.connected():
        await within(30, lambda: _is_well(rig))
        files_before, began_s = rig.num_files, time.monotonic()
        until_s = began_s + minutes * 60
        work = [load(rig, until_s) for _ in range(callers)]
        work += [leave(rig, began_s, until_s, wanted) for _ in range(callers)]
        work += [stay_stuck(rig, until_s) for _ in range(2)]
        watching = asyncio.create_task(_watch_memory(rig))
        await asyncio.gather(*work, inject_all(rig, until_s))
        watching.cancel()
    async with rig.connected():  # without the idle connections of the load
        return await verdict(rig, files_before, wanted)


def _end(number: int, frame: object) -> None:  # noqa: ARG001  the signal's
    sys.exit(1)  # the blocks of `main` stop every process


async def _is_well(rig: Rig) -> bool:
    return not await rig.faults()


async def _watch_memory(rig: Rig) -> None:
    began_s = time.monotonic()
    while True:
        pages = int(Path(f"/proc/{rig.pid}/statm").read_text().split()[1])  # noqa: ASYNC240  /proc does not block
        rig.seen.rss.append((time.monotonic() - began_s, pages * resource.getpagesize() / 2**20))
        await asyncio.sleep(1)


def _print(rig: Rig, minutes: float, promises: list[Promise]) -> None:
    figures = {promise.name: {"kept": promise.is_kept, "figure": promise.figure} for promise in promises}
    answers = dict(sorted(rig.seen.answers.items()))
    line = json.dumps({"minutes": minutes, "soak": figures, "answers": answers})
    sys.stdout.write(f"{table(promises)}\n{line}\n")


if __name__ == "__main__":
    sys.exit(main())
