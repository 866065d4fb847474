"""What a launched step did to its sequences in advance, so that the next one can be prepared, and how to undo it."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import msgspec

from deepseek_engine.sequence import PENDING_TOKEN_ID, ScheduledSequence, SequenceStatus


class LaunchedRow(msgspec.Struct, frozen=True, gc=False):
    """One sequence's share of a step under way; the sequence itself has moved on since.

    Attributes:
        end: the first position that the step does not compute; a token that it samples is that position's.
        takes_token: whether it samples one.
    """

    scheduled: ScheduledSequence
    end: int
    takes_token: bool


def advance(batch: Seq[ScheduledSequence]) -> list[LaunchedRow]:
    """The batch has been launched: count it as computed, and put a pending token where one will come.

    An answer's last token is given no place: then all its tokens are computed, and no step schedules it again.
    """
    rows: list[LaunchedRow] = []
    for scheduled in batch:
        sequence = scheduled.sequence
        token_ids = sequence.token_ids
        end = sequence.num_computed_tokens + scheduled.num_new_tokens
        takes_token = end == len(token_ids) and sequence.params.max_tokens != 0
        sequence.num_computed_tokens = end
        if takes_token and end + 1 < sequence.max_total_tokens:
            token_ids.append(PENDING_TOKEN_ID)
        rows.append(LaunchedRow(scheduled, end, takes_token))
    return rows


def take_back(rows: Iterable[LaunchedRow]) -> list[ScheduledSequence]:
    """Nothing of a launched step counts, nor of those after it, which were taken back before.

    Returns:
        its batch, as it was before the launch, without those that have ended or been preempted since.
    """
    batch: list[ScheduledSequence] = []
    for row in rows:
        sequence = row.scheduled.sequence
        if sequence.is_finished:
            continue
        if row.takes_token:
            del sequence.token_ids[row.end :]
        if sequence.status is SequenceStatus.RUNNING:
            sequence.num_computed_tokens = row.end - row.scheduled.num_new_tokens
            batch.append(row.scheduled)
    return batch
