"""`python -m deepseek_gateway.testing`: the fake engine as a process, with the engine's main flags."""

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.serving import serving


def main() -> int:
    """Run until SIGTERM; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deepseek_gateway.testing", description=__doc__)
    parser.add_argument("--model-path", default="fake-model", help="name to serve")
    parser.add_argument("--uds", type=Path, help="unix socket to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on, without --uds")
    parser.add_argument("--delay-s", type=float, default=0.0, help="seconds before each word")
    parser.add_argument("--start-delay-s", type=float, default=0.0, help="seconds until it listens")
    parser.add_argument(
        "--die", action="store_true", help="print a line and exit with status 3, as a broken model does"
    )
    arguments = parser.parse_args()
    if arguments.die:
        sys.stderr.write(f"cannot load {arguments.model_path}\n")
        return 3
    asyncio.run(_run(arguments))
    return 0


async def _run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), arguments.start_delay_s)
    engine = FakeEngine(models=(arguments.model_path,), delay_s=arguments.delay_s)
    async with serving(engine, port=arguments.port, uds=arguments.uds) as served:
        sys.stdout.write(served.url + "\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
