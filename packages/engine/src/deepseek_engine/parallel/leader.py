"""Rank 0: it starts the other ranks, and tells them what it computes."""

import socket
import weakref
from collections.abc import Generator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import replace

import torch

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import EngineDeadError
from deepseek_engine.messages import Message
from deepseek_engine.parallel.group import LOOPBACK, DistributedGroup, ParallelGroup, device_of_rank, serve_store
from deepseek_engine.parallel.messages import (
    Allocate,
    FreeCaches,
    Join,
    RankReady,
    ReadPrompts,
    Room,
    Up,
    describe_step,
)
from deepseek_engine.parallel.processes import RankProcesses
from deepseek_engine.runner_protocol import RunnerInfo
from deepseek_engine.sequence import ScheduledSequence


class Leader:
    """See `Peers`. The other ranks end with this object, if they are not closed before.

    Args:
        config: of more than one rank.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config, self._size = config, config.tensor_parallel_size
        self._processes: RankProcesses | None = None

    @property
    def failure(self) -> str | None:
        """See `Peers`."""
        return None if self._processes is None else self._processes.failure

    def join(self, device: torch.device) -> ParallelGroup:
        """See `Peers`."""
        self._processes = processes = RankProcesses(self._size)
        weakref.finalize(self, processes.close)
        with socket.create_server((LOOPBACK, 0)) as listening:
            port = listening.getsockname()[1]
            for rank in self._others:
                processes.send(rank, Join(self._config, rank, port))
            for rank in self._others:  # importing torch takes seconds, so one that cannot is noticed before the store
                came = processes.receive(rank)
                assert isinstance(came, Up)
            store = serve_store(listening.detach(), port, self._size)
        return DistributedGroup(store, 0, self._size, device_of_rank(device, 0), self._config.step_exit_s)

    def agree_on_blocks(self, num_blocks: int) -> int:
        """See `Peers`."""
        for rank in self._others:
            room = self._started.receive(rank)
            assert isinstance(room, Room)
            num_blocks = min(num_blocks, room.num_blocks)
        self._started.send_all(Allocate(num_blocks))
        return num_blocks

    def ready(self, info: RunnerInfo) -> RunnerInfo:
        """See `Peers`."""
        by_dtype, kv_cache_bytes = dict(info.weight_bytes_by_dtype), info.kv_cache_bytes
        for rank in self._others:
            message = self._started.receive(rank)
            assert isinstance(message, RankReady)
            kv_cache_bytes += message.kv_cache_bytes
            for name, num_bytes in message.weight_bytes_by_dtype.items():
                by_dtype[name] = by_dtype.get(name, 0) + num_bytes
        self._started.watch()
        weight_bytes = sum(by_dtype.values())
        return replace(info, weight_bytes=weight_bytes, weight_bytes_by_dtype=by_dtype, kv_cache_bytes=kv_cache_bytes)

    @contextmanager
    def step(self, batch: Seq[ScheduledSequence]) -> Generator[None]:
        """See `Peers`."""
        with self._together(describe_step(batch)):
            yield

    @contextmanager
    def prompt_reading(self) -> Generator[None]:
        """See `Peers`."""
        with self._together(ReadPrompts()):
            yield

    def free_caches(self) -> None:
        """See `Peers`."""
        self._started.send_all(FreeCaches())

    def close(self) -> None:
        """See `Peers`."""
        if self._processes is not None:
            self._processes.close()

    @property
    def _others(self) -> range:
        return range(1, self._size)

    @property
    def _started(self) -> RankProcesses:
        assert self._processes is not None, "join comes first"
        return self._processes

    @contextmanager
    def _together(self, message: Message) -> Generator[None]:
        self._started.send_all(message)
        try:
            yield
        except BaseException as error:
            # The others are in the middle of the same step, or have been left by one of them, and cannot come back.
            if not isinstance(error, Exception):
                self._started.fail("a step was interrupted")
                self._started.close()
                raise
            reason = self._started.explain(f"rank 0 of {self._size}: {error!r}")
            self._started.close()
            raise EngineDeadError(reason) from error
