"""`deepseek-gateway serve`: the gateway alone, in front of engines that run elsewhere."""

import argparse
import asyncio
import logging

import uvloop

from deepseek_gateway.access_log import set_up_logging
from deepseek_gateway.cli.common import Commands, add_listen_flags, add_state_flag, source_of
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.server import GatewayServer, keep_pauses_short, listen, listen_unix
from deepseek_gateway.settings import ConfigSource, Settings
from deepseek_gateway.stack.workers import Workers, parent_gone, socket_path

logger = logging.getLogger(__name__)


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("serve", help="run the gateway in front of engines")
    add_state_flag(parser)
    add_listen_flags(parser)
    parser.add_argument(
        "--upstream", action="append", metavar="URL", help="an engine; may be given again (GATEWAY_UPSTREAMS)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes on the port (GATEWAY_WORKERS, 1)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    source = source_of(parsed)
    settings = source.load()
    set_up_logging(settings.log_level, settings.access_log)
    if settings.workers > 1 and parsed.worker is None:
        return uvloop.run(_serve_workers(parsed.given, settings))
    uvloop.run(_serve(settings, source, is_worker=parsed.worker is not None))
    return 0


async def _serve_workers(given: list[str], settings: Settings) -> int:
    return await Workers(given, settings).run()


async def _serve(settings: Settings, source: ConfigSource, *, is_worker: bool) -> None:
    gateway = Gateway(settings, source)
    async with gateway:
        keep_pauses_short()
        listeners = [listen(settings.host, settings.port, settings.send_timeout_s, shared=is_worker)]
        if is_worker:
            listeners.append(listen_unix(socket_path(settings.state_dir, settings.worker)))
        server = GatewayServer(gateway, *listeners)
        parent = asyncio.create_task(_stop_with_parent(server)) if is_worker else None

        async def announce(url: str) -> None:
            print(f"listening on {url}", flush=True)

        with server.handling_signals():
            await server.serve(announce)
        if parent is not None:
            parent.cancel()
    logger.info("stopped")


async def _stop_with_parent(server: GatewayServer) -> None:
    await parent_gone()
    server.stop()
