"""Who waits, and who is next: by priority, then the tenant that has had least, then order of arrival.

    level -1   alice: 7
    level  0   alice: 2 9 12 ...   bob: 8         next: alice's 7, then by shares 2 or 8, ...

A level is a priority that ages: whoever has waited `ageing_steps` at one level moves to the next better one, as long
as somebody waits at a better one. There the shares decide, so that neither a stream of urgent requests nor a flood
from one tenant can keep anyone out for good.
"""

from collections import deque
from collections.abc import Iterator

from deepseek_engine.scheduling.fair_share import FairShare
from deepseek_engine.scheduling.lazy_heap import LazyHeap
from deepseek_engine.sequence import Sequence


class _Level:
    """The waiting sequences of one level: a line for each tenant, and the tenants by their shares."""

    def __init__(self) -> None:
        self.lines: dict[str, LazyHeap[Sequence]] = {}
        self.turns: LazyHeap[str] = LazyHeap()
        self.entries: deque[tuple[int, Sequence]] = deque()  # by the step in which they came to this level
        self.num_waiting = 0


class WaitQueue:
    """Every operation is O(log n), amortised; cancelling a sequence in the middle as well.

    Args:
        shares: what each tenant has been given.
        ageing_steps: steps of waiting that are worth one level of priority.
    """

    def __init__(self, shares: FairShare, ageing_steps: int) -> None:
        self.num_tokens = 0
        self._shares = shares
        self._ageing_steps = ageing_steps
        self._step = 0
        self._levels: dict[int, _Level] = {}
        self._entered: dict[Sequence, int] = {}  # the step in which each came to its level
        self._num_of_tenant: dict[str, int] = {}
        # As counted when each came: a step that was under way then may still bring it a token, or take one back.
        self._num_tokens_of: dict[Sequence, int] = {}

    def __len__(self) -> int:
        return len(self._entered)

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait, in no particular order."""
        return iter(self._entered)

    def push(self, sequence: Sequence) -> None:
        """Add a sequence at its level, behind those of its tenant that arrived before it."""
        tenant = sequence.tenant
        waiting = self._num_of_tenant.get(tenant, 0)
        if not waiting:
            self._shares.join(tenant)
        self._num_of_tenant[tenant] = waiting + 1
        num_tokens = self._num_tokens_of[sequence] = sequence.num_tokens
        self.num_tokens += num_tokens
        self._enter(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, from wherever it is."""
        self._leave(sequence)
        self.num_tokens -= self._num_tokens_of.pop(sequence)
        left = self._num_of_tenant[sequence.tenant] - 1
        if left:
            self._num_of_tenant[sequence.tenant] = left
        else:
            del self._num_of_tenant[sequence.tenant]

    def peek(self) -> Sequence:
        """Whose turn it is; the queue must not be empty."""
        level = self._levels[min(self._levels)]
        while True:
            key, tenant = level.turns.peek()
            arrival, sequence = level.lines[tenant].peek()
            # Shares grow while a tenant waits: an entry that is out of date goes back to where it belongs now.
            current = (self._shares.served(tenant), arrival)
            if key == current:
                return sequence
            level.turns.put(tenant, current)

    def age(self) -> None:
        """Count a step, and let those who have waited long enough at a level move up."""
        self._step += 1
        if len(self._levels) == 1:
            return
        for number in sorted(self._levels)[1:]:
            level = self._levels[number]
            while level.entries and level.entries[0][0] + self._ageing_steps <= self._step:
                entered, sequence = level.entries.popleft()
                if self._entered.get(sequence) == entered and sequence.level == number:
                    self._leave(sequence)
                    sequence.level -= 1
                    self._enter(sequence)

    def check(self) -> None:
        """Assert that the parts agree with each other. For tests: O(n)."""
        listed = [(number, s) for number, level in self._levels.items() for line in level.lines.values() for s in line]
        assert {s for _, s in listed} == set(self._entered)
        assert len(listed) == len(self._entered), "a sequence waits twice"
        assert all(s.level == number for number, s in listed)
        assert self._num_tokens_of.keys() == self._entered.keys()
        assert self.num_tokens == sum(self._num_tokens_of.values())
        assert sum(self._num_of_tenant.values()) == len(self)
        for level in self._levels.values():
            assert level.num_waiting == sum(map(len, level.lines.values())) > 0, "an empty level was kept"
            assert all(level.lines.values()), "an empty line was kept"
            assert set(level.turns) == set(level.lines)
            assert len(level.entries) <= 2 * level.num_waiting + 16

    def _enter(self, sequence: Sequence) -> None:
        level = self._levels.setdefault(sequence.level, _Level())
        tenant = sequence.tenant
        line = level.lines.setdefault(tenant, LazyHeap())
        line.put(sequence, sequence.arrival)
        if line.peek()[1] is sequence:
            level.turns.put(tenant, (self._shares.served(tenant), sequence.arrival))
        self._entered[sequence] = self._step
        level.entries.append((self._step, sequence))
        level.num_waiting += 1

    def _leave(self, sequence: Sequence) -> None:
        level = self._levels[sequence.level]
        line = level.lines[sequence.tenant]
        line.discard(sequence)
        if not line:
            del level.lines[sequence.tenant]
            level.turns.discard(sequence.tenant)
        del self._entered[sequence]
        level.num_waiting -= 1
        if not level.num_waiting:
            del self._levels[sequence.level]
        elif len(level.entries) > 2 * level.num_waiting + 16:
            level.entries = deque(entry for entry in level.entries if self._is_at(entry, sequence.level))

    def _is_at(self, entry: tuple[int, Sequence], level: int) -> bool:
        step, sequence = entry
        return self._entered.get(sequence) == step and sequence.level == level
