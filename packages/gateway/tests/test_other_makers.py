"""What servers of other makers write in their own way reaches the callers of every dialect whole, and the books."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.testing.raw_server import RawServer, chunks_of, raw_server
from deepseek_gateway.testing.stack import RunningGateway, running_gateway

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
TURN: list[Any] = [{"role": "user", "content": "hi"}]
WORDS = [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}]


@dataclass(frozen=True, slots=True)
class Walk:
    """One server, and the packages of two makers that ask it through a gateway."""

    server: RawServer
    running: RunningGateway
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    async def chat(self) -> list[Any]:
        """The chunks of a chat with usage."""
        wish: Any = {"include_usage": True}
        made = await self.openai.chat.completions.create(model="m", messages=TURN, stream=True, stream_options=wish)
        return [one async for one in made]

    async def message(self) -> anthropic.types.Message:
        """Anthropic's message, by its events."""
        async with self.anthropic.messages.stream(model="m", max_tokens=99, messages=TURN) as stream:
            kinds = [event.type async for event in stream]
            assert kinds[-1] == "message_stop"
            return await stream.get_final_message()

    async def response(self) -> Any:
        """OpenAI's response, out of the last event."""
        made = await self.openai.responses.create(model="m", input="hi", stream=True)
        events: list[Any] = [event async for event in made]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        return events[-1].response

    async def row(self, number: int = 1) -> LedgerRow:
        """The newest row of the ledger, once it has so many."""
        return (await self.running.rows(number))[-1]


@pytest.fixture
async def walk(state_dir: Path) -> AsyncIterator[Walk]:
    async with raw_server() as server:
        upstream = {"name": "other", "url": server.url, "kind": "openai", "models": ["m"]}
        async with running_gateway(state_dir, upstream) as running:
            key = running.key()
            async with (
                openai.AsyncOpenAI(api_key=key, base_url=f"{running.url}/v1", max_retries=0) as by_openai,
                anthropic.AsyncAnthropic(api_key=key, base_url=running.url, max_retries=0) as by_anthropic,
            ):
                yield Walk(server, running, by_openai, by_anthropic)


async def test_usage_that_comes_with_the_last_piece_ends_every_dialect_well(walk: Walk) -> None:
    walk.server.streams(*chunks_of(WORDS, usage=USAGE), DONE)
    chunks = await walk.chat()
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 7)
    message = await walk.message()
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 5, 2)
    response = await walk.response()
    assert (response.status, response.usage.total_tokens, response.output[0].content[0].text) == ("completed", 7, "ab")
    for row in await walk.running.rows(3):
        assert (row.end_reason, row.prompt_tokens, row.completion_tokens, row.accuracy) == ("stop", 5, 2, "exact")
