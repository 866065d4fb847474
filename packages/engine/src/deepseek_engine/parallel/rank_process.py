"""Ranks 1 and up: `python -m deepseek_engine.parallel.rank_process --fd N`, N one end of a socket pair.

Rank 0 says what to compute, and this process computes it with its part of the model; the results meet in collective
operations within the step. The socket is the process's life line: when rank 0 closes it, or dies, the process exits,
even in the middle of a step.
"""

import argparse
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence as Seq

import msgspec
import torch

from deepseek_engine.errors import EngineError
from deepseek_engine.model_runner import ModelRunner, build_rank
from deepseek_engine.parallel.group import DistributedGroup, ParallelGroup, device_of_rank, reach_store
from deepseek_engine.parallel.link import Link
from deepseek_engine.parallel.messages import (
    Allocate,
    ComputeStep,
    FreeCaches,
    Join,
    RankFailed,
    RankReady,
    ReadPrompts,
    Room,
    ToRank,
    Up,
    batch_of,
)
from deepseek_engine.parallel.peers import Alone
from deepseek_engine.runner_protocol import RunnerInfo
from deepseek_engine.sequence import ScheduledSequence

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run a rank on the socket given; returns the process's exit status."""
    # Ctrl-C goes to the whole foreground group, and rank 0 decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    parser = argparse.ArgumentParser(prog="deepseek_engine.parallel.rank_process", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of a connected stream socket")
    parser.add_argument("--log-level", default="WARNING", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=args.log_level, format="%(asctime)s %(levelname)s rank[%(process)d] %(name)s: %(message)s"
    )
    with socket.socket(fileno=args.fd) as sock:
        threading.Thread(target=_end_with_rank_0, args=(args.fd,), name="life line", daemon=True).start()
        link = Link(sock, msgspec.msgpack.Decoder[ToRank](ToRank))
        join = link.receive()
        if join is None:
            return 0
        assert isinstance(join, Join)
        try:
            _serve(link, build_rank(join.config, _Follower(link, join)))
        except Exception as error:  # whatever a model or a device may raise is what rank 0 is told
            is_ours = isinstance(error, EngineError)
            logger.log(logging.DEBUG if is_ours else logging.ERROR, "rank %d failed", join.rank, exc_info=True)
            link.send(RankFailed(str(error) if is_ours else repr(error), is_refusal=is_ours))
            return 1
    return 0


class _Follower(Alone):
    """See `Peers`: rank 0's as another rank sees it. In steps it follows, and has nobody to tell."""

    def __init__(self, link: Link[ToRank], join: Join) -> None:
        self._link, self._join = link, join

    def join(self, device: torch.device) -> ParallelGroup:
        """See `Peers`."""
        self._link.send(Up())
        config, rank = self._join.config, self._join.rank
        store = reach_store(self._join.store_port, config.tensor_parallel_size)
        device = device_of_rank(device, rank)
        return DistributedGroup(store, rank, config.tensor_parallel_size, device, config.step_exit_s)

    def agree_on_blocks(self, num_blocks: int) -> int:
        """See `Peers`."""
        self._link.send(Room(num_blocks))
        answer = self._link.receive()
        assert isinstance(answer, Allocate), "the life line ends the process if there is no answer"
        return answer.num_blocks

    def ready(self, info: RunnerInfo) -> RunnerInfo:
        """See `Peers`."""
        self._link.send(RankReady(info.weight_bytes_by_dtype, info.kv_cache_bytes))
        return info


def _serve(link: Link[ToRank], runner: ModelRunner) -> None:
    """Do as rank 0 says until it is gone."""
    batch: Seq[ScheduledSequence] = ()
    while (message := link.receive()) is not None:
        match message:
            case ComputeStep():
                batch = batch_of(message)
                runner.forward(batch)
            case ReadPrompts():
                runner.read_prompts(batch)
            case FreeCaches():
                runner.free_caches()
            case Join() | Allocate():
                raise AssertionError(f"{type(message).__name__} comes once, before the steps")


def _end_with_rank_0(fd: int) -> None:
    """Wait until the other end of the socket is closed, reading nothing, and end the process."""
    lifeline = select.poll()
    lifeline.register(fd, 0)  # a hang-up is told without asking
    lifeline.poll()
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
