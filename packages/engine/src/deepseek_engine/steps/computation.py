"""Computing a batch so that what cannot be computed fails alone.

Nothing of a step counts before the scheduler commits it: keys and values are written to slots that belong to one
sequence, or behind its last committed token, and are written again with the same values; tokens are drawn from numbers
that depend on seed and position; masks, penalties and readings are functions of what is committed. So a batch may be
run again, whole or in parts, and a batch that raises is halved until the sequences that raise alone are found.
"""

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Final

from deepseek_engine.errors import EngineDeadError
from deepseek_engine.grammar.desk import GrammarDesk
from deepseek_engine.prompt_reading import PromptPart
from deepseek_engine.runner_protocol import Runner
from deepseek_engine.sequence import SampledToken, ScheduledSequence, Sequence
from deepseek_engine.steps.journal import StepJournal
from deepseek_engine.steps.memory import ran_out_of_memory

logger = logging.getLogger(__name__)

MAX_SPLITS: Final = 32
"""Parts of one batch that are halved at most: enough to find every culprit among 32, and one among any number."""

Sampled = tuple[ScheduledSequence, list[SampledToken]]
Reading = tuple[Sequence, int, PromptPart]


@dataclass(slots=True)
class Outcome:
    """What became of a batch.

    Attributes:
        computed: may be committed.
        sampled: each of those that gets a token, with the token and those behind its drafts.
        readings: what was read off prompts, and the position up to which it was.
        failures: could not be computed, each with the reason.
        ran_out: why memory did not suffice; nothing was computed then, and nothing has failed.
    """

    computed: list[ScheduledSequence] = field(default_factory=list[ScheduledSequence])
    sampled: list[Sampled] = field(default_factory=list[Sampled])
    readings: list[Reading] = field(default_factory=list[Reading])
    failures: list[tuple[ScheduledSequence, str]] = field(default_factory=list[tuple[ScheduledSequence, str]])
    ran_out: str | None = None


class Computation:
    """Runs batches: forward, what is read off prompts, masks, sampling."""

    def __init__(self, runner: Runner[Any], grammars: GrammarDesk, journal: StepJournal) -> None:
        self._runner = runner
        self._grammars = grammars
        self._journal = journal

    def run(self, batch: Seq[ScheduledSequence]) -> Outcome:
        """Compute the batch, or as much of it as can be computed.

        Raises:
            EngineDeadError: the runner says that nothing can be computed any more.
        """
        outcome = Outcome()
        parts: list[Seq[ScheduledSequence]] = [batch]
        num_splits = 0
        while parts:
            part = parts.pop()
            # Exceptions are kept as text: their tracebacks would keep a failed step's tensors alive.
            try:
                sampled, readings = self._run(part)
            except EngineDeadError:
                raise
            except Exception as error:  # whatever a model, a sampler or a device may raise
                if ran_out_of_memory(error):
                    return Outcome(ran_out=repr(error))
                if part is batch:
                    logger.exception("a step of %d sequences failed", len(batch))
                if len(part) > 1 and num_splits < MAX_SPLITS:
                    num_splits += 1
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                else:
                    outcome.failures += [(scheduled, repr(error)) for scheduled in part]
            else:
                outcome.computed += part
                outcome.sampled += sampled
                outcome.readings += readings
        return outcome

    def _run(self, batch: Seq[ScheduledSequence]) -> tuple[list[Sampled], list[Reading]]:
        self._journal.compute(batch)
        logits = self._runner.forward(batch)
        self._journal.enter("sample")
        read = [(s.sequence, p.stop) for s in batch if s.sequence.reading is not None and (p := s.read_positions)]
        parts = self._runner.read_prompts(batch) if read else []
        readings = [(sequence, stop, part) for (sequence, stop), part in zip(read, parts, strict=True)]
        self._grammars.fill_masks(batch)
        tokens = self._runner.sample(logits, batch)
        sampled: list[Sampled] = []
        num_taken = 0
        for scheduled in batch:
            if num_rows := scheduled.num_sampled_rows:
                sampled.append((scheduled, tokens[num_taken : num_taken + num_rows]))
                num_taken += num_rows
        assert num_taken == len(tokens), f"{len(tokens)} tokens for {num_taken} rows"
        return sampled, readings
