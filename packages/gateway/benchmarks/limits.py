"""What limits cost a request: admit and settle, in process and on Redis, with one to ten rules.

    python packages/gateway/benchmarks/limits.py [--redis unix:///run/redis.sock] [--times 20000]

Prints microseconds a request: the median and the best of seven rounds. On Redis a round trip waits for the server; its
CPU time is what it costs this process.
"""

import argparse
import asyncio
import statistics
import time

from deepseek_gateway.limits.limiter import Limiter
from deepseek_gateway.limits.local import LocalLimiter
from deepseek_gateway.limits.redis_limiter import RedisLimiter
from deepseek_gateway.limits.redis_link import RedisLink
from deepseek_gateway.limits.rulebook import Meter, Plan, Rulebook
from deepseek_gateway.limits.rules import Amounts, Ask, Kind, LimitRule, Limits, Subject
from deepseek_gateway.limits.windows import Window

ROUNDS = 7
MUCH = 10**15
SUBJECT = Subject("k", "acme", "red", "ann", "m")
ASK = Ask(100, 256, Amounts(356, 35_600), Amounts(116, 11_600))
RULES = [
    LimitRule("rpm", Kind.REQUESTS_PER_MINUTE, MUCH, key_id="k"),
    LimitRule("tpm", Kind.TOKENS_PER_MINUTE, MUCH, key_id="k"),
    LimitRule("slots", Kind.CONCURRENT_REQUESTS, MUCH, key_id="k"),
    LimitRule("month", Kind.TOKENS_PER_MONTH, MUCH, org_id="acme"),
    LimitRule("money", Kind.MONEY_PER_DAY, MUCH, org_id="acme", time_zone="Asia/Shanghai"),
    *(LimitRule(f"more{number}", Kind.TOKENS_PER_MINUTE, MUCH, team_id="red") for number in range(5)),
]


async def nothing_spent(_: Meter, __: Window) -> int:
    """An empty ledger."""
    return 0


async def no_rows() -> None:
    """Nothing to flush."""


async def one_round(limiter: Limiter, plan: Plan, times: int, name: str) -> tuple[float, float]:
    """Microseconds a request: of the wall clock, and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(times):
        reservation = await limiter.admit(f"{name}{number}", plan, ASK)
        limiter.settle(reservation, Amounts(200, 20_000))
        await limiter.settled(reservation)
    return (time.perf_counter() - wall) / times * 1e6, (time.process_time() - cpu) / times * 1e6


async def measure(name: str, limiter: Limiter, times: int) -> None:
    """Print one line a number of rules."""
    await limiter.start()
    for count in (1, 5, 10):
        plan = Rulebook(RULES[:count]).plan(SUBJECT, Limits())
        await one_round(limiter, plan, times // 10, f"warm{count}-")
        rounds = [await one_round(limiter, plan, times, f"{count}-{number}-") for number in range(ROUNDS)]
        walls, cpus = ([each[kind] for each in rounds] for kind in (0, 1))
        print(
            f"{name:8} {count:2} rules: {statistics.median(walls):7.1f} us (best {min(walls):.1f}), "
            f"CPU {statistics.median(cpus):7.1f} us (best {min(cpus):.1f})"
        )
    await limiter.close()


async def run(redis_url: str | None, times: int) -> None:
    """Measure both limiters, or one where there is no Redis."""
    await measure("local", LocalLimiter(nothing_spent), times)
    if redis_url is not None:
        await measure("redis", RedisLimiter(RedisLink(redis_url, 5.0), nothing_spent, no_rows), times // 20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", metavar="URL", help="a Redis that may be written to")
    parser.add_argument("--times", type=int, default=20_000, help="requests a round")
    parsed = parser.parse_args()
    asyncio.run(run(parsed.redis, parsed.times))
