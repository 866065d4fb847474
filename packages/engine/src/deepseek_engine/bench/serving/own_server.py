"""A `deepseek-server` of the benchmark's own, on a free port, for the length of a run."""

import asyncio
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

_READY: Final = re.compile(r"ready on (http://\S+?):? model=")
_STOP_S: Final = 15.0
_NUM_KEPT_LINES: Final = 20


class ServerStartError(Exception):
    """The server did not come up; the message has its last lines."""


@asynccontextmanager
async def own_server(model: str, arguments: Sequence[str], timeout_s: float) -> AsyncGenerator[str]:
    """Run `deepseek-server` on this model.

    Args:
        model: folder, .gguf file, hub id or built-in name.
        arguments: further flags of the server.
        timeout_s: for loading the model.

    Yields:
        its base URL, once it answers.

    Raises:
        ServerStartError: it ended, or was not ready in time.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deepseek_engine.server", "--model-path", model, "--port", "0", *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is the benchmark's, which still has answers to count
    )  # fmt: skip
    assert process.stderr is not None
    reading = None
    try:
        url = await _wait_ready(process.stderr, timeout_s)
        reading = asyncio.create_task(_discard(process.stderr))  # a full pipe would stop the server
        yield url
    finally:
        if reading is not None:
            reading.cancel()
        await _stop(process)


async def _wait_ready(log: asyncio.StreamReader, timeout_s: float) -> str:
    last = deque[str](maxlen=_NUM_KEPT_LINES)
    try:
        async with asyncio.timeout(timeout_s):
            while line := (await log.readline()).decode(errors="replace"):
                last.append(line)
                if found := _READY.search(line):
                    return found[1]
    except TimeoutError:
        raise ServerStartError(f"the server was not ready within {timeout_s:g} s:\n{''.join(last)}") from None
    raise ServerStartError(f"the server did not start:\n{''.join(last)}")


async def _discard(log: asyncio.StreamReader) -> None:
    while await log.read(65536):
        pass


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask, then insist. Nothing is under way any more: the connections closed before."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
