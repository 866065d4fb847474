"""Sentiment of a batch of news: many requests at once, but never more than LIMIT, and one failure is one line.

Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them.
"""

import asyncio
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from deepseek_client import AsyncDeepSeek, DeepSeekError

LIMIT = 4
"""Requests in flight; DeepSeek counts these, not requests a minute."""

NEWS = (
    "Battery maker raises its guidance for the year after a record quarter.",
    "Regulator opens an inquiry into the bank's reporting.",
    "The retailer's sales were unchanged from last year.",
    "Chip maker recalls a line of processors.",
    "Airline orders forty aircraft and adds six routes.",
    "The miner's chief executive retires; his deputy takes over.",
)


class Sentiment(BaseModel):
    """One score."""

    label: Literal["positive", "neutral", "negative"]
    strength: Literal[1, 2, 3, 4, 5]
    reason: Annotated[str, Field(max_length=100)]


async def main() -> None:
    """Score all, print them in order, and sum up."""
    gate = asyncio.Semaphore(LIMIT)
    async with AsyncDeepSeek() as client:

        async def score(headline: str) -> Sentiment | None:
            async with gate:
                question = f"For a shareholder, how does this news sound?\n{headline}"
                messages = [{"role": "user", "content": question}]
                try:
                    answer = await client.chat.completions.parse(
                        messages=messages, response_model=Sentiment, max_tokens=1000
                    )
                except DeepSeekError as error:
                    print(f"failed: {headline}: {error}")
                    return None
                return answer.parsed

        scores = await asyncio.gather(*map(score, NEWS))
    for headline, sentiment in zip(NEWS, scores, strict=True):
        if sentiment is not None:
            print(f"{sentiment.label:8} {sentiment.strength}  {headline}  ({sentiment.reason})")
    signs = {"positive": 1, "neutral": 0, "negative": -1}
    known = [signs[sentiment.label] * sentiment.strength for sentiment in scores if sentiment is not None]
    print(f"[{len(known)} of {len(NEWS)} scored; mean {sum(known) / max(len(known), 1):+.2f}]")


if __name__ == "__main__":
    asyncio.run(main())
