"""What happens when callers leave and engines die, with real processes."""

import asyncio
import json
import random
import signal
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from deepseek_client import AsyncDeepSeek, DeepSeek, DeepSeekError, OverloadedError
from deepseek_gateway.testing.cutting import CuttingProxy
from processes import Server, Stack, engine_counters, issue_key, program, wait_until

PROMPT = "Count slowly."
LONG = 3000
"""Tokens of an answer that nobody waits for."""


@dataclass(frozen=True)
class Gateway:
    """`deepseek-gateway serve` in front of an engine whose own counters can be read."""

    url: str
    state: Path
    engine_url: str

    def billed(self) -> dict[str, int]:
        """The ledger's totals, by the command line."""
        command = [program("deepseek-gateway"), "usage", "--state", str(self.state), "--json"]
        rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return {name: sum(row[name] for row in rows) for name in ("requests", "prompt_tokens", "completion_tokens")}

    def engine_counts(self) -> dict[str, float]:
        return engine_counters(self.engine_url)

    def is_settled(self) -> bool:
        """Whether the ledger holds all that the engine has done."""
        counts, billed = self.engine_counts(), self.billed()
        return counts["generation_tokens_total"] == billed["completion_tokens"]

    def is_engine_idle(self) -> bool:
        counts = self.engine_counts()
        return counts["requests_running"] == counts["requests_waiting"] == counts["kv_blocks_used"] == 0


@pytest.fixture(scope="module")
def gateway(engine: Server, tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    state = tmp_path_factory.mktemp("serve")
    subprocess.run([program("deepseek-gateway"), "migrate", "--state", str(state)], check=True, capture_output=True)
    command = [program("deepseek-gateway"), "serve", "--state", str(state), "--port", "0", "--upstream", engine.url()]
    server = Server(command, state / "test.log")
    server.start()
    url = server.url()
    wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, "the gateway is ready")
    yield Gateway(url, state, engine.url())
    assert server.stop() == 0


async def ask_in_some_way(client: AsyncDeepSeek, rng: random.Random, prompt: str) -> None:
    """A request read whole, left at some token or before the first, or a plain call, awaited or cancelled."""
    way = rng.choice(["call", "cancelled call", "stream", "left at once", "left early", "left later"])
    if way == "call":
        await client.generate(prompt, max_tokens=rng.randrange(2, 30), ignore_eos=True)
    elif way == "cancelled call":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(rng.random() * 0.4):
                await client.generate(prompt, max_tokens=LONG, ignore_eos=True)
    else:
        leave_after = {"stream": None, "left at once": 0, "left early": 1, "left later": 9}[way]
        max_tokens = rng.randrange(2, 30) if leave_after is None else LONG
        async with client.generate_stream(prompt, max_tokens=max_tokens, ignore_eos=True) as stream:
            count = 0
            while count != leave_after and await anext(stream, None) is not None:
                count += 1


async def test_32_streams_with_random_disconnects_leave_no_block_in_use(gateway: Gateway) -> None:
    key = issue_key(gateway.state, "--name", "streams")
    async with AsyncDeepSeek(api_key=key, base_url=gateway.url) as client:

        async def stream(index: int) -> int:
            count, leave_after = 0, random.Random(index).choice([None, 1, 2, 5, 20])
            max_tokens = 40 if leave_after is None else LONG
            async with client.generate_stream(f"{PROMPT} {index}", max_tokens=max_tokens, ignore_eos=True) as pieces:
                while count != leave_after and await anext(pieces, None) is not None:
                    count += 1
            return count

        counts = await asyncio.gather(*(stream(index) for index in range(32)))
    assert all(counts)
    await asyncio.to_thread(wait_until, gateway.is_engine_idle, "every block is free again")


async def test_the_ledger_equals_the_engines_own_count_after_500_requests_with_random_disconnects(
    gateway: Gateway,
) -> None:
    key = issue_key(gateway.state, "--name", "billing")
    await asyncio.to_thread(wait_until, gateway.is_settled, "earlier requests are in the ledger")
    before, billed_before = gateway.engine_counts(), gateway.billed()
    rng = random.Random(3)
    async with AsyncDeepSeek(api_key=key, base_url=gateway.url, timeout=120.0) as client:
        places = asyncio.Semaphore(64)

        async def ask(index: int) -> None:
            async with places:
                await ask_in_some_way(client, rng, f"{PROMPT} {index}")

        await asyncio.gather(*(ask(index) for index in range(500)))
    await asyncio.to_thread(wait_until, gateway.is_engine_idle, "the engine is idle")

    def unbilled() -> dict[str, float]:
        counts, billed = gateway.engine_counts(), gateway.billed()
        computed = {
            "prompt_tokens": counts["prompt_tokens_total"] - before["prompt_tokens_total"],
            "completion_tokens": counts["generation_tokens_total"] - before["generation_tokens_total"],
        }
        return {name: computed[name] - (billed[name] - billed_before[name]) for name in computed}

    # The last rows reach the store a moment after the last answer.
    agree = {"prompt_tokens": 0, "completion_tokens": 0}
    await asyncio.to_thread(wait_until, lambda: unbilled() == agree, "ledger and engine agree", describe=unbilled)
    assert gateway.billed()["completion_tokens"] - billed_before["completion_tokens"] > 1000
    # Whoever cancelled before the gateway had read the request has no row.
    assert 300 < gateway.billed()["requests"] - billed_before["requests"] <= 500


def process_of(stack: Stack, module: str) -> psutil.Process:
    """The newest process of that module among the gateway's descendants."""
    found = [
        process
        for process in psutil.Process(stack.process.pid).children(recursive=True)
        if module in " ".join(process.cmdline())
    ]
    return max(found, key=lambda process: process.create_time())


def test_a_killed_engine_is_a_clear_503_and_the_gateway_recovers_when_it_returns(stack: Stack) -> None:
    with DeepSeek(api_key=stack.user_key, base_url=stack.url, max_retries=0) as client:
        assert client.generate(PROMPT, max_tokens=4).text
        killed = process_of(stack, "deepseek_engine.server")
        with client.generate_stream(PROMPT, max_tokens=LONG, ignore_eos=True) as stream:
            next(stream)
            killed.send_signal(signal.SIGKILL)
            with pytest.raises(DeepSeekError) as broken:
                list(stream)
        assert broken.value.partial_text
        with pytest.raises(OverloadedError) as caught:
            client.generate(PROMPT, max_tokens=4)
        assert caught.value.retry_after is not None
        wait_until(lambda: httpx.get(f"{stack.url}/ready").status_code == 200, "the engine is back", 60.0)
        assert client.generate(PROMPT, max_tokens=4).text


def test_a_killed_engine_core_ends_the_server_and_the_gateway_recovers(stack: Stack) -> None:
    server = process_of(stack, "deepseek_engine.server")
    process_of(stack, "deepseek_engine.core_process").kill()
    server.wait(30)
    ask = {"prompt": PROMPT, "max_tokens": 4}
    headers = {"authorization": f"Bearer {stack.user_key}"}

    # Not /ready: until a request or a probe fails, the gateway takes the engine that has just gone for alive.
    def answers() -> bool:
        return httpx.post(f"{stack.url}/v1/generate", json=ask, headers=headers, timeout=30).status_code == 200

    wait_until(answers, "the engine is back", 60.0)


def test_a_stream_cut_in_the_middle_goes_on_without_a_token_lost_and_is_billed_once(gateway: Gateway) -> None:
    key = issue_key(gateway.state, "--name", "cut")
    wait_until(gateway.is_settled, "earlier requests are in the ledger")
    before = gateway.billed()
    with CuttingProxy(gateway.url) as proxy, DeepSeek(api_key=key, base_url=proxy.url, resume=True) as client:
        proxy.cuts = [2500]  # of 60 tokens and more than 10 000 bytes, or fewer where a busy engine joins events
        with client.generate_stream(PROMPT, max_tokens=60, ignore_eos=True, return_token_ids=True) as stream:
            text = "".join(stream)
        assert [seam.how for seam in stream.seams] == ["replay"]
        assert (stream.generation.text, stream.usage.completion_tokens) == (text, 60)
        assert len(stream.generation.token_ids) == 60
    wait_until(lambda: gateway.is_settled() and gateway.billed()["requests"] > before["requests"], "it is billed")
    after = gateway.billed()
    assert (after["requests"] - before["requests"], after["completion_tokens"] - before["completion_tokens"]) == (1, 60)


def test_a_chat_cut_in_the_middle_goes_on_from_its_text_at_an_engine(engine: Server) -> None:
    ask = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 60, "ignore_eos": True}
    with CuttingProxy(engine.url()) as proxy, DeepSeek(base_url=proxy.url, resume=True) as client:
        proxy.cuts = [2500]
        with client.chat.completions.stream(**ask) as stream:
            text = "".join(stream.text_stream)
    (seam,) = stream.seams
    assert (seam.how, stream.finish_reason, stream.retries_taken) == ("prefix", "length", 1)
    assert 0 < seam.position < len(text) == len(stream.snapshot.choices[0].message.content)
