"""When requests are sent.

Open loop: at times drawn beforehand, whatever the server does meanwhile, as independent users do. A request that the
sender was late with still counts from the time at which it was due: otherwise a server that stalls would delay the very
requests that would have shown it ("coordinated omission", Gil Tene).

Closed loop: so many callers, each sending its next request when its last one has ended.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence

from deepseek_engine.bench.serving.prompts import Prompt
from deepseek_engine.bench.serving.record import Record

Send = Callable[[Prompt, Record], Awaitable[None]]


def arrival_times(count: int, rate: float, rng: random.Random, burstiness: float = 1.0) -> list[float]:
    """Seconds at which `count` requests are due.

    Args:
        count: how many.
        rate: requests a second, on average; infinity is all at once.
        rng: the draw.
        burstiness: shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes in bursts, more is
            more even.
    """
    at_s, times = 0.0, list[float]()
    for _ in range(count):
        times.append(at_s)
        at_s += 0.0 if rate == float("inf") else rng.gammavariate(burstiness, 1 / (rate * burstiness))
    return times


async def open_loop(
    prompts: Sequence[Prompt], due_s: Sequence[float], send: Send, now: Callable[[], float], records: list[Record]
) -> None:
    """Send each prompt at its time. Records are added as requests come due.

    Cancelled: those under way are cancelled as well, and say so in their records.
    """
    async with asyncio.TaskGroup() as group:
        for index, (prompt, at_s) in enumerate(zip(prompts, due_s, strict=True)):
            if (wait_s := at_s - now()) > 0:
                await asyncio.sleep(wait_s)
            records.append(record := Record(index, due_s=at_s))
            group.create_task(_noted(send, prompt, record))


async def closed_loop(
    prompts: Sequence[Prompt], concurrency: int, send: Send, now: Callable[[], float], records: list[Record]
) -> None:
    """Keep so many requests under way until all prompts are sent."""
    waiting: Iterator[Prompt] = iter(prompts)

    async def caller() -> None:
        for prompt in waiting:
            records.append(record := Record(len(records), due_s=now()))
            await _noted(send, prompt, record)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(prompts))):
            group.create_task(caller())


async def _noted(send: Send, prompt: Prompt, record: Record) -> None:
    try:
        await send(prompt, record)
    except asyncio.CancelledError:
        record.fail("interrupted", "the benchmark was stopped")
        raise
