"""Gateways that kill themselves: `python -m deepseek_gateway.testing.crashing POINT,POINT,… serve --state …`.

One after the other they serve the same state, each until it has died at its point; at last one serves that does not.
All are forks of one process, so that the modules are loaded once: a start takes a tenth of the time.

`within recovery` comes as a gateway starts and keeps what the one before it left behind; every other point comes with
the first request. `before sync` is after an admission was written and before the disk has it; `within commit` leaves an
open transaction. Any other word is a gateway that goes on until it is killed from outside.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from deepseek_gateway.audit.life import Refusal
from deepseek_gateway.cli import COMMANDS, main
from deepseek_gateway.ledger import disk
from deepseek_gateway.ledger.journal import Journal
from deepseek_gateway.ledger.records import Settled
from deepseek_gateway.relay import usage_tap
from deepseek_gateway.storage.books import Books
from deepseek_gateway.upstream.attempt import Try

_PR_SET_PDEATHSIG = 1
_PIECE = 4
"""The piece of the stream, counted from 1, that `within stream` dies at: some events went out before."""


class _Plan:
    """Where this process dies."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.has_request = False
        self.pieces = 0

    def reach(self, point: str) -> None:
        """Die here if it is the place."""
        if point == self.point and (self.has_request or point == "within recovery"):
            os.kill(os.getpid(), signal.SIGKILL)


def _arm(plan: _Plan) -> None:
    append, keep, sync = Journal.append, Books.keep, disk.sync_files
    judge, run, split = Try.take, Try.run, usage_tap.split_usage

    def crashing_append(self: Journal, record: dict[str, Any]) -> int:
        plan.has_request |= record["kind"] == "admit"
        plan.reach(f"before {record['kind']}")
        ticket = append(self, record)
        plan.reach(f"after {record['kind']}")
        return ticket

    def crashing_keep(self: Books, settled: Sequence[Settled], refusals: Sequence[Refusal] = ()) -> None:
        with self.ledger.database.transaction():
            keep(self, settled, refusals)
            plan.reach("within commit" if plan.has_request else "within recovery")
        plan.reach("after commit")

    def crashing_judge(self: Try) -> bool | None:
        if is_open := judge(self):
            plan.reach("after send")
        return is_open

    async def crashing_run(self: Try) -> None:
        await run(self)
        plan.reach("after send")

    def crashing_split(data: bytes) -> tuple[bytes, dict[str, Any] | None]:
        plan.pieces += 1
        if plan.pieces == _PIECE:
            plan.reach("within stream")
        return split(data)

    def crashing_sync(retired: list[int], current: int, folder: Any) -> None:
        plan.reach("before sync")
        sync(retired, current, folder)

    Journal.append, Books.keep, usage_tap.split_usage = crashing_append, crashing_keep, crashing_split
    Try.take, Try.run = crashing_judge, crashing_run
    disk.sync_files = crashing_sync


def serve_in_turn(points: Sequence[str], arguments: Sequence[str]) -> int:
    """Serve once for each point, then once more, as this process itself.

    Prints `process PID` for each, and `POINT: STATUS` when it is over.
    """
    for name in (f"cli.{COMMANDS[arguments[0]]}", "storage.postgres"):
        import_module(f"deepseek_gateway.{name}")
    for point in points:
        child = os.fork()
        if child == 0:
            # Were the parent killed, nobody would end this one.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _arm(_Plan(point))
            os._exit(main(arguments))
        _say(f"process {child}")
        _say(f"{point}: {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
    return main(arguments)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(serve_in_turn(sys.argv[1].split(","), sys.argv[2:]))
