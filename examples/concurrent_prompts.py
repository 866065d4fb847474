"""Twenty prompts at once: the engine batches them, so together they take far less than twenty times one.

Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them.
"""

import asyncio
import time

from deepseek_client import AsyncDeepSeek, Generation

TOPICS = (
    "rain", "trains", "bread", "the moon", "chess", "bees", "paper", "volcanoes", "music", "glass",
    "salt", "bridges", "whales", "maps", "clocks", "coffee", "deserts", "kites", "libraries", "tea",
)  # fmt: skip


async def main() -> None:
    """Send all prompts, print the answers in order and the rate."""
    started = time.perf_counter()
    async with AsyncDeepSeek() as client:
        answers: list[Generation] = await asyncio.gather(
            *(client.generate(f"Tell me one fact about {topic}.", max_tokens=40) for topic in TOPICS)
        )
    elapsed_s = time.perf_counter() - started
    for topic, answer in zip(TOPICS, answers, strict=True):
        print(f"{topic}: {' '.join(answer.text.split())}")
    tokens = sum(answer.usage.completion_tokens for answer in answers if answer.usage is not None)
    print(f"[{len(answers)} answers, {tokens} tokens in {elapsed_s:.1f} s: {tokens / elapsed_s:.0f} tokens/s]")


if __name__ == "__main__":
    asyncio.run(main())
