import pytest

from deepseek_engine.kv_cache.block_allocator import BlockAllocator


def test_every_block_is_handed_out_once_before_any_comes_back():
    allocator = BlockAllocator(8)
    blocks = [allocator.allocate() for _ in range(8)]
    assert sorted(blocks) == list(range(8))
    assert allocator.num_free == 0
    with pytest.raises(AssertionError, match="no free block"):
        allocator.allocate()


def test_a_shared_block_is_free_only_when_its_last_owner_frees_it():
    allocator = BlockAllocator(2)
    block = allocator.allocate()
    allocator.share(block)
    allocator.check([[block], [block]])
    allocator.free(block)
    assert allocator.num_free == 1
    allocator.free(block)
    assert allocator.num_free == 2
    allocator.check([])


def test_freeing_or_sharing_a_block_that_nobody_owns_is_a_fault():
    allocator = BlockAllocator(2)
    block = allocator.allocate()
    allocator.free(block)
    with pytest.raises(AssertionError, match=f"block {block}, which nobody owns"):
        allocator.free(block)
    with pytest.raises(AssertionError, match=f"block {block}, which nobody owns"):
        allocator.share(block)


def test_kept_content_outlives_its_owner_and_counts_as_free():
    evicted: list[int] = []
    allocator = BlockAllocator(2, evicted.append)
    block = allocator.allocate()
    allocator.keep_content(block)
    allocator.free(block)
    assert allocator.num_free == 2
    allocator.share(block)
    assert (allocator.ref_count(block), allocator.num_free, evicted) == (1, 1, [])
    allocator.check([[block]])


def test_empty_blocks_go_first_then_the_content_unused_for_longest():
    evicted: list[int] = []
    allocator = BlockAllocator(3, evicted.append)
    old, new, empty = (allocator.allocate() for _ in range(3))
    for block in (old, new):
        allocator.keep_content(block)
        allocator.free(block)
    allocator.free(empty)
    assert [allocator.allocate() for _ in range(3)] == [empty, old, new]
    assert evicted == [old, new]


def test_content_used_again_is_evicted_last():
    evicted: list[int] = []
    allocator = BlockAllocator(2, evicted.append)
    first, second = allocator.allocate(), allocator.allocate()
    for block in (first, second):
        allocator.keep_content(block)
        allocator.free(block)
    allocator.share(first)
    allocator.free(first)
    allocator.allocate()
    assert evicted == [second]


@pytest.mark.parametrize("tables", [[], [[0, 0]], [[1]], [[0], [0]]])
def test_check_notices_tables_that_do_not_match_the_counts(tables: list[list[int]]):
    allocator = BlockAllocator(2)
    assert allocator.allocate() == 0
    allocator.check([[0]])
    with pytest.raises(AssertionError):
        allocator.check(tables)
