"""What the engine asks of a model runner; tests give it a fake one, so that scheduling is checked without torch."""

from collections.abc import Sequence as Seq
from typing import Protocol, TypeVar

from deepseek_engine.sequence import SampledToken, ScheduledSequence

Logits = TypeVar("Logits")


class Runner(Protocol[Logits]):
    """Turns a scheduled batch into logits, and logits into tokens.

    The two are separate so that a grammar mask can be prepared on the host while `forward` runs on the device.
    """

    def forward(self, batch: Seq[ScheduledSequence]) -> Logits:
        """Compute the batch and write its keys and values to the cache; logits of the sequences that need a token."""
        ...

    def sample(self, logits: Logits, batch: Seq[ScheduledSequence]) -> list[SampledToken]:
        """One token for each sequence of the batch that needs one, in the batch's order."""
        ...
