"""`deepseek-gateway serve`: the gateway alone, in front of engines that run elsewhere."""

import argparse
import logging

import uvloop

from deepseek_gateway.access_log import set_up_logging
from deepseek_gateway.cli.common import Commands, add_listen_flags, add_state_flag, source_of
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.server import GatewayServer, listen
from deepseek_gateway.settings import ConfigSource, Settings

logger = logging.getLogger(__name__)


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("serve", help="run the gateway in front of engines")
    add_state_flag(parser)
    add_listen_flags(parser)
    parser.add_argument(
        "--upstream", action="append", metavar="URL", help="an engine; may be given again (GATEWAY_UPSTREAMS)"
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    source = source_of(parsed)
    settings = source.load()
    set_up_logging(settings.log_level, settings.access_log)
    uvloop.run(_serve(settings, source))
    return 0


async def _serve(settings: Settings, source: ConfigSource) -> None:
    gateway = Gateway(settings, source)
    async with gateway:
        server = GatewayServer(gateway, listen(settings.host, settings.port, settings.send_timeout_s))

        async def announce(url: str) -> None:
            print(f"listening on {url}", flush=True)

        with server.handling_signals():
            await server.serve(announce)
    logger.info("stopped")
