"""`deepseek-gateway` without the half second that a process takes to start."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from deepseek_gateway.cli import main


class Command:
    """`deepseek-gateway`, called in this process.

    Args:
        read: what was written to stdout and to stderr since it was last asked, as `capsys.readouterr` tells it.
    """

    def __init__(self, read: Callable[[], Sequence[str]]) -> None:
        self._read = read

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Run it; gives its status, and what it wrote to stdout and stderr."""
        status = main([str(argument) for argument in arguments])
        out, error = self._read()
        return status, out, error

    def json(self, *arguments: object) -> Any:
        """What it prints with `--json`; it must succeed."""
        status, out, error = self(*arguments, "--json")
        assert status == 0, error
        return json.loads(out)
