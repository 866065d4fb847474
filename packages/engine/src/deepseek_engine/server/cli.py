"""`deepseek-server`: the entry point, which says what to install when the `[server]` extra is missing."""

import sys


def main() -> None:
    """Run the server; exits with its status."""
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
