"""A chain of gateways that are killed, as tests drive it."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.processes import RunningProcess

CRASHING = (sys.executable, "-m", "deepseek_gateway.testing.crashing")


class Chain:
    """Gateways over one state that die one after the other, each recovering what the one before it left behind."""

    def __init__(self, points: Iterable[str], state: Path, engine_url: str, env: dict[str, str]) -> None:
        command = [*CRASHING, ",".join(points), "serve", "--state", str(state), "--port", "0"]
        self.running = RunningProcess([*command, "--upstream", engine_url], env)
        self._num_urls = 0

    async def url(self) -> str:
        """Where the next of them listens, once it does."""
        self._num_urls += 1
        return (await self._line("listening on", self._num_urls)).split()[-1]

    async def kill(self, point: str, number: int) -> None:
        """Kill the one of a place in the order, from 1."""
        os.kill(int((await self._line("process", number)).split()[-1]), signal.SIGKILL)
        await self.has_died(point)

    async def has_died(self, point: str) -> None:
        """Wait until one has killed itself.

        Raises:
            RuntimeError: it ended otherwise.
        """
        if await self._line(point, 1) != f"{point}: -9":
            raise RuntimeError("\n".join(self.running.errors))

    async def end(self) -> None:
        """Wait for the sound one, and end it in good order.

        Raises:
            RuntimeError: it did not end so.
        """
        await self.url()
        self.running.signal()
        if await asyncio.to_thread(self.running.wait):
            raise RuntimeError("\n".join(self.running.errors))

    async def _line(self, start: str, number: int) -> str:
        def found() -> list[str]:
            return [line for line in self.running.lines if line.startswith(start)]

        await until(lambda: len(found()) >= number or self.running.process.poll() is not None, timeout_s=30)
        if len(found()) < number:
            raise RuntimeError("\n".join(self.running.errors))
        return found()[number - 1]
