"""Who owns which block of the KV cache: reference counts, and free blocks in the order in which they are used again."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq


class BlockAllocator:
    """Hands out block numbers from 0 to num_blocks - 1; every operation is O(1).

    A block whose content the prefix cache knows stays usable after its last owner frees it: `share` takes it back.
    It is given to someone else only when no empty block is left, the one freed longest ago first; `on_evict` then
    hears of it.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None] | None = None) -> None:
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._ref_counts = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._reusable: OrderedDict[int, None] = OrderedDict()
        self._has_content = [False] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out: empty ones, and those whose content nobody is using."""
        return len(self._empty) + len(self._reusable)

    def ref_count(self, block: int) -> int:
        """How many block tables the block is in."""
        return self._ref_counts[block]

    def allocate(self) -> int:
        """Take a free block for one owner; its old content is forgotten."""
        assert self.num_free, "allocate() with no free block: the scheduler must check num_free first"
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._reusable.popitem(last=False)
            self._has_content[block] = False
            if self._on_evict is not None:
                self._on_evict(block)
        assert self._ref_counts[block] == 0
        self._ref_counts[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add an owner to a block that is in use, or to one whose content was kept."""
        if self._ref_counts[block] == 0:
            assert block in self._reusable, f"share() of block {block}, which nobody owns and which holds nothing"
            del self._reusable[block]
        self._ref_counts[block] += 1

    def free(self, block: int) -> None:
        """Take one owner away."""
        assert self._ref_counts[block] > 0, f"free() of block {block}, which nobody owns"
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == 0:
            if self._has_content[block]:
                self._reusable[block] = None
            else:
                self._empty.append(block)

    def keep_content(self, block: int) -> None:
        """Say that the prefix cache knows this block's content."""
        assert self._ref_counts[block] > 0, f"keep_content() of block {block}, which nobody owns"
        self._has_content[block] = True

    def check(self, block_tables: Iterable[Seq[int]]) -> None:
        """Assert that counts match the block tables given, and free + used = total. For tests: O(num_blocks)."""
        owners = Counter(block for table in block_tables for block in table)
        for block, count in enumerate(self._ref_counts):
            assert count == owners[block], f"block {block}: {count} references, in {owners[block]} block tables"
        free = [*self._empty, *self._reusable]
        assert len(set(free)) == len(free), "a block is free twice"
        assert not owners.keys() & set(free), "a block is free and in use"
        assert len(free) + len(owners) == self.num_blocks, f"{len(free)} free + {len(owners)} used != {self.num_blocks}"
        assert all(self._has_content[block] for block in self._reusable)
        assert not any(self._has_content[block] for block in self._empty)
