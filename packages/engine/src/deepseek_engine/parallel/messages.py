"""Messages between rank 0 and the others: typed, in frames as the engine core's (`framing`), never pickled.

To a rank: one `Join`, one `Allocate`, then `ComputeStep`, `ReadPrompts` and `FreeCaches`. From it: `Up`, `Room` and
`RankReady`, or `RankFailed` in place of any of them or at any time later.

A step's message says what the step needs, not what changed since the one before: a rank keeps no books of sequences, so
none can differ from rank 0's.
"""

from array import array
from collections.abc import Sequence as Seq
from typing import Final

import msgspec

from deepseek_engine.config import EngineConfig
from deepseek_engine.messages import Message
from deepseek_engine.prompt_reading import PromptReading, Purpose
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence


class Join(Message, frozen=True):
    """Which part to load, and where the ranks meet: a TCP store on loopback."""

    config: EngineConfig
    rank: int
    store_port: int


class Up(Message, frozen=True):
    """The rank is there, and comes to the store."""


class Room(Message, frozen=True):
    """The weights are loaded, and so many blocks of KV cache have room."""

    num_blocks: int


class Allocate(Message, frozen=True):
    """Reserve so many blocks."""

    num_blocks: int


class RankReady(Message, frozen=True):
    """The rank waits for steps; what it holds."""

    weight_bytes_by_dtype: dict[str, int]
    kv_cache_bytes: int


class RankFailed(Message, frozen=True):
    """The rank ends; `is_refusal` if the checkpoint or a setting is at fault."""

    reason: str
    is_refusal: bool = False


class StepReading(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is read off a prompt, as far as it decides which rows are."""

    purpose: Purpose
    end: int
    next_position: int


class StepSequence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One sequence's part of a step; positions, slots and rows follow from it.

    Attributes:
        num_computed_tokens: in the cache already; the new tokens follow them.
        num_tokens: prompt and answer so far.
        new_token_ids: int32, of this host's byte order.
        block_table: likewise.
    """

    num_computed_tokens: int
    num_tokens: int
    new_token_ids: bytes
    block_table: bytes
    draft_token_ids: tuple[int, ...]
    prefix_len: int
    is_prompt_only: bool
    reading: StepReading | None


class ComputeStep(Message, frozen=True):
    """Compute a batch, and the logits of its rows."""

    sequences: tuple[StepSequence, ...]


class ReadPrompts(Message, frozen=True):
    """Compute the logits of the prompt rows that the last step was to read."""


class FreeCaches(Message, frozen=True):
    """Give back memory that is only kept for speed."""


ToRank = Join | Allocate | ComputeStep | ReadPrompts | FreeCaches
FromRank = Up | Room | RankReady | RankFailed

_PROMPT_ONLY: Final = SamplingParams(temperature=0.0, max_tokens=0)
_ANSWERING: Final = SamplingParams(temperature=0.0)
"""Rank 0 samples; the others only need to know whether it does."""


def describe_step(batch: Seq[ScheduledSequence]) -> ComputeStep:
    """A batch for the other ranks."""
    return ComputeStep(tuple(_describe(scheduled) for scheduled in batch))


def batch_of(step: ComputeStep) -> list[ScheduledSequence]:
    """The batch again, with all that computing it takes. Token ids that are in the cache already are 0."""
    return [_scheduled(each) for each in step.sequences]


def _describe(scheduled: ScheduledSequence) -> StepSequence:
    sequence, reading = scheduled.sequence, scheduled.sequence.reading
    begin = sequence.num_computed_tokens
    return StepSequence(
        num_computed_tokens=begin,
        num_tokens=len(sequence.token_ids),
        new_token_ids=_packed(sequence.token_ids[begin : begin + scheduled.num_new_tokens]),
        block_table=_packed(sequence.block_table),
        draft_token_ids=scheduled.draft_token_ids,
        prefix_len=sequence.prefix_len,
        is_prompt_only=sequence.is_prompt_only,
        reading=None if reading is None else StepReading(reading.purpose, reading.end, reading.next_position),
    )


def _scheduled(step: StepSequence) -> ScheduledSequence:
    new_token_ids, reading = _unpacked(step.new_token_ids), step.reading
    num_behind = step.num_tokens - step.num_computed_tokens - len(new_token_ids)
    sequence = Sequence(
        request_id="",
        index=0,
        token_ids=[0] * step.num_computed_tokens + new_token_ids + [0] * num_behind,
        params=_PROMPT_ONLY if step.is_prompt_only else _ANSWERING,
        sampling_seed=0,
        prefix_len=step.prefix_len,
        num_computed_tokens=step.num_computed_tokens,
        block_table=_unpacked(step.block_table),
        reading=None if reading is None else PromptReading(reading.purpose, reading.end, reading.next_position),
    )
    return ScheduledSequence(sequence, len(new_token_ids), step.draft_token_ids)


def _packed(numbers: list[int]) -> bytes:
    """As lists, msgpack would take ten times as long."""
    return array("i", numbers).tobytes()


def _unpacked(numbers: bytes) -> list[int]:
    found = array("i")
    found.frombytes(numbers)
    return found.tolist()
