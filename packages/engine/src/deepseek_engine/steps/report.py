"""The state of a core as text for the log: what it computes, who waits, what is free. Ids and numbers only."""

from typing import Final

from deepseek_engine.scheduler import Scheduler
from deepseek_engine.sequence import ScheduledSequence
from deepseek_engine.steps.journal import StepJournal

_MAX_LISTED: Final = 64


def describe_core(journal: StepJournal, scheduler: Scheduler, *, num_open: int, num_inbox: int) -> str:
    """Several lines. Safe beside a step that is under way: it only reads, and each number is right by itself."""
    batch = list(journal.batch)
    allocator, budget = scheduler.allocator, scheduler.budget
    num_tokens = sum(scheduled.num_new_tokens for scheduled in batch)
    lines = [
        f"phase={journal.phase or 'idle'} turn={journal.turn}",
        f"requests: open={num_open} inbox={num_inbox} running={scheduler.num_running} waiting={scheduler.num_waiting} "
        f"waiting_tokens={scheduler.num_waiting_tokens}",
        f"kv blocks: free={allocator.num_free} total={allocator.num_blocks} block_size={scheduler.block_size}",
        f"step budget: tokens={budget.tokens} full={budget.full}",
        f"last batch: sequences={len(batch)} new_tokens={num_tokens}",
        *map(_describe_sequence, batch[:_MAX_LISTED]),
    ]
    if len(batch) > _MAX_LISTED:
        lines.append(f"  and {len(batch) - _MAX_LISTED} more")
    lines += [
        f"step before: kind={kind} sequences={num_sequences} tokens={num} seconds={seconds:.4f}"
        for kind, num_sequences, num, seconds in reversed(list(journal.recent))
    ]
    return "\n".join(lines)


def _describe_sequence(scheduled: ScheduledSequence) -> str:
    sequence = scheduled.sequence
    return (
        f"  id={sequence.request_id} index={sequence.index} tokens={len(sequence.token_ids)} "
        f"computed={sequence.num_computed_tokens} new={scheduled.num_new_tokens} "
        f"drafts={len(scheduled.draft_token_ids)} blocks={len(sequence.block_table)} "
        f"preemptions={sequence.num_preemptions}"
    )
