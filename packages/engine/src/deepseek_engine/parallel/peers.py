"""Peers: what a runner knows of the other ranks, while it loads and in every step."""

from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

import torch

from deepseek_engine.parallel.group import SINGLE, ParallelGroup
from deepseek_engine.runner_protocol import RunnerInfo
from deepseek_engine.sequence import ScheduledSequence

_NOTHING: Final = nullcontext()


class Peers(Protocol):
    """The other ranks. What is called while loading comes in this order: `join`, `agree_on_blocks`, `ready`."""

    @property
    def failure(self) -> str | None:
        """Why nothing can be computed any more; None while it can. Any thread may ask."""
        ...

    def join(self, device: torch.device) -> ParallelGroup:
        """Meet the others.

        Args:
            device: of this kind each rank has one.

        Raises:
            EngineDeadError: one does not come.
        """
        ...

    def agree_on_blocks(self, num_blocks: int) -> int:
        """As many blocks of KV cache as every rank has room for, from how many this one has.

        Raises:
            ModelLoadError: another rank could not load its part.
            EngineDeadError: another rank is gone.
        """
        ...

    def ready(self, info: RunnerInfo) -> RunnerInfo:
        """Say that this rank is loaded, and wait for the others; the bytes in the result are those of all ranks."""
        ...

    def step(self, batch: Seq[ScheduledSequence]) -> AbstractContextManager[None]:
        """Have the others compute the same while the caller does.

        Raises:
            EngineDeadError: this rank or another has failed: they cannot go on from there.
        """
        ...

    def prompt_reading(self) -> AbstractContextManager[None]:
        """Have the others take part in reading prompts; as `step`."""
        ...

    def free_caches(self) -> None:
        """Have the others do so too."""
        ...

    def close(self) -> None:
        """End the others. A second call does nothing."""
        ...


class Alone:
    """There are none, or they are told by rank 0."""

    failure = None

    def join(self, device: torch.device) -> ParallelGroup:
        """See `Peers`."""
        del device
        return SINGLE

    def agree_on_blocks(self, num_blocks: int) -> int:
        """See `Peers`."""
        return num_blocks

    def ready(self, info: RunnerInfo) -> RunnerInfo:
        """See `Peers`."""
        return info

    def step(self, batch: Seq[ScheduledSequence]) -> AbstractContextManager[None]:
        """See `Peers`."""
        del batch
        return _NOTHING

    def prompt_reading(self) -> AbstractContextManager[None]:
        """See `Peers`."""
        return _NOTHING

    def free_caches(self) -> None:
        """See `Peers`."""

    def close(self) -> None:
        """See `Peers`."""


ALONE: Final = Alone()
