"""Continuous batching: what runs next, what waits, what is preempted. Plain Python, without torch and without a clock.

There are no prefill and decode phases: a step gives tokens of one budget to sequences, each of which catches up with
its own length (vLLM's scheduler). A sequence gets blocks for all its tokens when it is admitted, and grows by a block
at a time while it decodes. When no block is left, the running sequence of the worst priority that arrived last gives
up its blocks and waits again. Who waits is admitted in the order of `scheduling.wait_queue`.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from operator import attrgetter

from deepseek_engine.kv_cache.block_allocator import BlockAllocator
from deepseek_engine.kv_cache.prefix_cache import PrefixCache
from deepseek_engine.scheduling.fair_share import OUTPUT_TOKEN_COST, PROMPT_TOKEN_COST, FairShare
from deepseek_engine.scheduling.token_budget import TokenBudget
from deepseek_engine.scheduling.wait_queue import WaitQueue
from deepseek_engine.sequence import ScheduledSequence, Sequence, SequenceStatus
from deepseek_engine.steps.launched_rows import LaunchedRow

_rank = attrgetter("level", "arrival")


class Scheduler:
    """Decides each step's batch. Work a step is O(batch), however long the contexts are and however many wait.

    Use: `schedule()`, compute the batch, `commit()` it, append the sampled tokens, `finish()` what has ended. A batch
    that ran out of memory is not committed but given to `back_off()`. A batch that was launched may be under way while
    the next one is scheduled; it is then given to `commit_launched()`.

    Args:
        num_blocks: blocks of the KV cache.
        block_size: tokens a block.
        max_num_seqs: sequences in one step at most.
        max_num_batched_tokens: tokens in one step at most.
        enable_prefix_caching: reuse the blocks of equal prompt beginnings.
        priority_ageing_steps: steps of waiting that are worth one level of priority.
        preempt_every_steps: put the last decoding sequence back every so many steps; for tests.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool,
        priority_ageing_steps: int = 1000,
        preempt_every_steps: int | None = None,
    ) -> None:
        assert max_num_batched_tokens >= max_num_seqs, "every running sequence needs room for one token a step"
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.budget = TokenBudget(max_num_batched_tokens)
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self._prefix_cache = PrefixCache(block_size) if enable_prefix_caching else None
        self.allocator = BlockAllocator(
            num_blocks, self._prefix_cache.forget if self._prefix_cache is not None else None
        )
        self._shares = FairShare()
        self._waiting = WaitQueue(self._shares, priority_ageing_steps)
        self._running: list[Sequence] = []  # best level first, then by arrival
        self._num_arrivals = 0
        self._num_steps = 0
        self._preempt_every_steps = preempt_every_steps
        self._with_new_token: list[Sequence] = []  # only kept for forced preemption
        self._blocked: tuple[Sequence, int, int] | None = None

    @property
    def num_running(self) -> int:
        """Sequences that hold a place in the batch."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that could run if there were room."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of the sequences that wait."""
        return self._waiting.num_tokens

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its forks follow it once it has computed the prompt."""
        assert self._num_blocks_for(sequence.max_total_tokens) <= self.allocator.num_blocks, "can never fit"
        for each in (sequence, *sequence.forks):
            each.arrival = self._num_arrivals
            self._num_arrivals += 1
        self._waiting.push(sequence)

    def schedule(self, *, is_under_way: bool = False) -> list[ScheduledSequence]:
        """The next step's batch: decodes first, then prefills under way, then whoever waits, in the queue's order.

        Args:
            is_under_way: whether the batch before has been launched and not been taken up.
        """
        num_preemptions = self.num_preemptions
        self._waiting.age()
        self._preempt_for_tests()
        batch, prefilling = self._schedule_decodes()
        budget = self.budget.tokens - len(batch)
        for sequence in prefilling:
            if budget > 0 and not _must_wait(sequence, batch, budget):
                budget -= self._add_to_batch(batch, sequence, budget)
        # Whoever was just preempted would take its blocks straight back, unless nobody else needs them. While a step is
        # under way its token may be pending, too: it waits until that is taken up, which is before the next call.
        if self.num_preemptions == num_preemptions or not (self._running or is_under_way):
            self._admit_waiting(batch, budget)
        return batch

    def commit(self, batch: Seq[ScheduledSequence]) -> None:
        """The batch has been computed: count its tokens, offer its full blocks for reuse, let forks start."""
        self.budget.note_success()
        if self._preempt_every_steps is not None:
            self._with_new_token = [scheduled.sequence for scheduled in batch if scheduled.needs_token]
        for scheduled in batch:
            sequence = scheduled.sequence
            before = sequence.num_computed_tokens
            after = sequence.num_computed_tokens = before + scheduled.num_new_tokens
            self._count_computed(sequence, before, after)
            if sequence.forks and sequence.num_computed_tokens >= sequence.num_prompt_tokens:
                self._start_forks(sequence)

    def commit_launched(self, rows: Seq[LaunchedRow]) -> None:
        """A launched batch has been computed, and its tokens are known: as `commit`, but for what moved on at launch.

        Nothing is done for those that have ended or been preempted since: they hold no blocks.
        """
        self.budget.note_success()
        if self._preempt_every_steps is not None:
            self._with_new_token = [row.scheduled.sequence for row in rows if row.takes_token]
        running = SequenceStatus.RUNNING
        for row in rows:
            sequence, end = row.scheduled.sequence, row.end
            if sequence.status is running:
                self._count_computed(sequence, end - row.scheduled.num_new_tokens, end)
                if sequence.forks and end >= sequence.num_prompt_tokens:
                    self._start_forks(sequence)

    def reserve_drafts(self, sequence: Sequence, num_tokens: int) -> int:
        """Get slots for draft tokens behind a scheduled sequence's last one; how many of them have one.

        Guesses take no block that a running sequence's next token may need.
        """
        wanted = self._num_blocks_for(len(sequence.token_ids) + num_tokens)
        while len(sequence.block_table) < wanted and self.allocator.num_free > len(self._running):
            sequence.block_table.append(self.allocator.allocate())
        return min(num_tokens, len(sequence.block_table) * self.block_size - len(sequence.token_ids))

    def accept_drafts(self, sequence: Sequence, num_tokens: int) -> None:
        """Drafts were right and are tokens of the sequence now; the slots of the others are written again later."""
        before = sequence.num_computed_tokens
        sequence.num_computed_tokens = before + num_tokens
        self._count_computed(sequence, before, before + num_tokens)

    def back_off(self, batch: Seq[ScheduledSequence]) -> bool:
        """The batch ran out of memory and nothing of it counts: make the next ones half as large.

        Returns False if it was a single token, or a single prefix that cannot be split, so that no smaller batch can
        help.
        """
        if len(batch) == 1 and batch[0].num_new_tokens <= batch[0].sequence.num_indivisible_tokens:
            return False
        if not self.budget.shrink(
            sum(scheduled.num_new_tokens + len(scheduled.draft_token_ids) for scheduled in batch)
        ):
            return False
        while len(self._running) > self.budget.tokens:
            self._preempt(self._running.pop())
        return True

    def finish(self, sequence: Sequence) -> None:
        """End a sequence in whatever state it is and free its blocks; if others wait for its prompt, one takes over."""
        if sequence.status is SequenceStatus.RUNNING:
            self._leave_running(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        self._release_blocks(sequence)
        sequence.status = SequenceStatus.FINISHED
        forks, sequence.forks = [fork for fork in sequence.forks if not fork.is_finished], []
        if forks:
            leader, *leader.forks = forks
            leader.level = sequence.level
            self._enqueue(leader)

    def check(self) -> None:
        """Assert every invariant between queues, sequences and blocks. For tests: it reads all block tables."""
        holders = [*self._running, *self._waiting]
        self.allocator.check(sequence.block_table for sequence in holders)
        self._waiting.check()
        ranks = [_rank(sequence) for sequence in self._running]
        assert ranks == sorted(set(ranks)), "the running sequences are out of order"
        assert all(sequence.status is SequenceStatus.RUNNING for sequence in self._running)
        assert all(sequence.status is SequenceStatus.WAITING for sequence in self._waiting)
        assert len(self._running) <= min(self.max_num_seqs, self.budget.full)
        for sequence in holders:
            assert sequence.num_computed_tokens <= len(sequence.block_table) * self.block_size
            for index, block in enumerate(sequence.block_table):
                is_full = (index + 1) * self.block_size <= sequence.num_computed_tokens
                assert is_full or self.allocator.ref_count(block) == 1, f"block {block} is shared and still written to"

    def _count_computed(self, sequence: Sequence, before: int, after: int) -> None:
        if self._prefix_cache is not None:
            first_block, end_block = before // self.block_size, after // self.block_size
            if end_block > first_block:
                for block in self._prefix_cache.register(sequence, first_block, end_block):
                    self.allocator.keep_content(block)
        # Charged for what was computed for the first time; what preemption repeats is not the tenant's doing.
        num_charged = sequence.num_charged_tokens
        if after > num_charged:
            self._shares.charge(sequence.tenant, (after - num_charged) * OUTPUT_TOKEN_COST)
            sequence.num_charged_tokens = after

    def _schedule_decodes(self) -> tuple[list[ScheduledSequence], list[Sequence]]:
        """The decodes of the step, and the running sequences that do not decode yet."""
        batch: list[ScheduledSequence] = []
        prefilling: list[Sequence] = []
        running, block_size = SequenceStatus.RUNNING, self.block_size
        for sequence in list(self._running):
            if sequence.status is not running:
                break  # preempted for a better one, as are all that follow
            num_tokens = len(sequence.token_ids)
            num_uncomputed = num_tokens - sequence.num_computed_tokens
            if num_uncomputed != 1:
                if num_uncomputed:  # else the step under way is its last
                    prefilling.append(sequence)
            elif len(sequence.block_table) * block_size >= num_tokens or self._grow(sequence):
                batch.append(ScheduledSequence(sequence, 1))
        return batch, [sequence for sequence in prefilling if sequence.status is running]

    def _grow(self, sequence: Sequence) -> bool:
        """Give a decoding sequence the block for its next token; False if it was itself the one to be preempted."""
        while not self.allocator.num_free:
            victim = self._running.pop()
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.block_table.append(self.allocator.allocate())
        return True

    def _leave_running(self, sequence: Sequence) -> None:
        place = bisect_left(self._running, _rank(sequence), key=_rank)
        assert self._running[place] is sequence, "the running sequences are out of order"
        del self._running[place]

    def _preempt(self, sequence: Sequence) -> None:
        self._release_blocks(sequence)
        self._enqueue(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1

    def _preempt_for_tests(self) -> None:
        self._num_steps += 1
        if self._preempt_every_steps is None or self._num_steps % self._preempt_every_steps:
            return
        # Only one that the last step brought a token: put back each time before it gets that far, it would never end.
        for sequence in reversed(self._with_new_token):
            if sequence.status is SequenceStatus.RUNNING:
                self._leave_running(sequence)
                self._preempt(sequence)
                return

    def _admit_waiting(self, batch: list[ScheduledSequence], budget: int) -> None:
        max_running = min(self.max_num_seqs, self.budget.tokens)
        while self._waiting and budget > 0 and len(self._running) < max_running:
            sequence = self._waiting.peek()
            if _must_wait(sequence, batch, budget):
                return
            if not self._place(sequence):
                if self._running:
                    return
                # Only forks in the queue hold blocks now. Without them the cache is empty, and anything admitted fits.
                for holder in self._waiting:
                    self._release_blocks(holder)
                placed = self._place(sequence)
                assert placed, "nothing runs and the next sequence does not fit"
            self._waiting.remove(sequence)
            sequence.status = SequenceStatus.RUNNING
            self._charge_prompt(sequence)
            insort(self._running, sequence, key=_rank)
            budget -= self._add_to_batch(batch, sequence, budget)

    def _place(self, sequence: Sequence) -> bool:
        """Get blocks for all tokens of a waiting sequence, those of the prefix cache first; False if there are too few.

        One block for each running sequence stays free: otherwise the next step would preempt what this one admits.
        """
        num_free, num_running = self.allocator.num_free, len(self._running)
        # Looking a long prompt up again every step would cost more than it finds while no room has been made.
        blocked = self._blocked
        if blocked is not None and num_running and blocked[0] is sequence:
            _, free_then, running_then = blocked
            if num_free <= free_then and num_running >= running_then:
                return False
        hits = self._prefix_cache.match(sequence) if self._prefix_cache is not None and not sequence.block_table else []
        del hits[sequence.max_cached_tokens // self.block_size :]
        num_new = self._num_blocks_for(len(sequence.token_ids)) - len(sequence.block_table) - len(hits)
        num_revived = sum(self.allocator.ref_count(block) == 0 for block in hits)
        if num_new + num_revived + num_running > num_free:
            self._blocked = (sequence, num_free, num_running)
            return False
        self._blocked = None
        if self._prefix_cache is not None and not sequence.block_table and not sequence.num_charged_tokens:
            self.num_prefix_queries += sequence.num_prompt_tokens
            self.num_prefix_hits += len(hits) * self.block_size
        if hits:
            self._share_blocks(sequence, hits)
        sequence.num_cached_tokens = len(hits) * self.block_size
        sequence.block_table += [self.allocator.allocate() for _ in range(num_new)]
        return True

    def _charge_prompt(self, sequence: Sequence) -> None:
        """The tenant's turn has come; it pays for the prompt at once, so that many at a time do not come cheaper."""
        self._shares.choose(sequence.tenant)
        start = max(sequence.num_computed_tokens, sequence.num_charged_tokens)
        if start < sequence.num_prompt_tokens:
            self._shares.charge(sequence.tenant, (sequence.num_prompt_tokens - start) * PROMPT_TOKEN_COST)
        sequence.num_charged_tokens = max(start, sequence.num_prompt_tokens)

    def _start_forks(self, leader: Sequence) -> None:
        """Queue the other answers to a prompt that is now computed; its full blocks are theirs as well."""
        shared = leader.block_table[: (leader.num_prompt_tokens - 1) // self.block_size]
        for fork in leader.forks:
            if not fork.is_finished:
                self._share_blocks(fork, shared)
                fork.block_digests = leader.block_digests[: len(shared)]
                fork.level = leader.level
                self._enqueue(fork)
        leader.forks = []

    def _share_blocks(self, sequence: Sequence, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.allocator.share(block)
            sequence.block_table.append(block)
        sequence.num_computed_tokens = len(sequence.block_table) * self.block_size

    def _release_blocks(self, sequence: Sequence) -> None:
        # The last block first: of a prefix that is kept, the end is then evicted before the beginning.
        for block in reversed(sequence.block_table):
            self.allocator.free(block)
        sequence.block_table.clear()
        sequence.num_computed_tokens = 0

    def _enqueue(self, sequence: Sequence) -> None:
        """Put a sequence back where its arrival belongs: ahead of those of its tenant and level that came later."""
        sequence.status = SequenceStatus.WAITING
        self._waiting.push(sequence)

    def _add_to_batch(self, batch: list[ScheduledSequence], sequence: Sequence, budget: int) -> int:
        num_new_tokens = min(sequence.num_uncomputed_tokens, max(budget, sequence.num_indivisible_tokens))
        batch.append(ScheduledSequence(sequence, num_new_tokens))
        return num_new_tokens

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)


def _must_wait(sequence: Sequence, batch: Seq[ScheduledSequence], budget: int) -> bool:
    """Whether the sequence's prefix, which cannot be split, is more than what the rest of this step may compute.

    Alone it never waits: it fits the full budget, and would wait for good once lack of memory has lowered that.
    """
    return bool(batch) and sequence.num_indivisible_tokens > budget
