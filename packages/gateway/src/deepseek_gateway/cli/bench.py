"""`deepseek-gateway bench`: the engine directly, this gateway, and LiteLLM, side by side."""

from deepseek_gateway.bench.cli import run_bench
from deepseek_gateway.bench.flags import add_flags
from deepseek_gateway.cli.common import Commands


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("bench", help="measure this gateway beside the engine alone and LiteLLM")
    add_flags(parser)
    parser.set_defaults(run=run_bench)
