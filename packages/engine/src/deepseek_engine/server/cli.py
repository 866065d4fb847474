"""`deepseek-server`: the entry point, which says what to install when the `[server]` extra is missing."""

import sys


def main() -> None:
    """Run the server, or convert a checkpoint; exits with its status."""
    if sys.argv[1:2] == ["quantize"]:
        from deepseek_engine.conversion.command import run_quantize  # works without the extra

        raise SystemExit(run_quantize(sys.argv[2:]))
    try:
        from deepseek_engine.server.command import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("deepseek_engine"):
            raise
        print(
            f"deepseek-server needs {error.name}, which is not installed: pip install 'deepseek-engine[server]'",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    raise SystemExit(run(sys.argv[1:]))
