from deepseek_engine.kv_cache.prefix_cache import PrefixCache
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import Sequence


def make(token_ids: list[int], *, salt: str = "", blocks: tuple[int, ...] = ()) -> Sequence:
    sequence = Sequence("r", 0, token_ids, SamplingParams(), sampling_seed=0, cache_salt=salt)
    sequence.block_table = list(blocks)
    return sequence


def test_a_prompt_matches_the_leading_full_blocks_that_it_shares():
    cache = PrefixCache(4)
    assert cache.register(make(list(range(12)), blocks=(7, 8, 9)), 0, 3) == [7, 8, 9]
    assert cache.match(make([*range(8), 50, 51, 52, 53, 54])) == [7, 8]
    assert cache.match(make([50, *range(1, 12)])) == []


def test_one_token_is_always_left_to_compute():
    cache = PrefixCache(4)
    cache.register(make(list(range(8)), blocks=(1, 2)), 0, 2)
    assert cache.match(make(list(range(8)))) == [1]
    assert cache.match(make(list(range(9)))) == [1, 2]
    assert cache.match(make([0])) == []


def test_the_same_tokens_after_another_beginning_do_not_match():
    cache = PrefixCache(2)
    cache.register(make([1, 2, 3, 4], blocks=(5, 6)), 0, 2)
    assert cache.match(make([9, 9, 3, 4, 0])) == []


def test_entries_of_one_salt_are_out_of_reach_of_another():
    cache = PrefixCache(2)
    cache.register(make([1, 2, 3], salt="alice", blocks=(5,)), 0, 1)
    assert cache.match(make([1, 2, 3], salt="bob")) == []
    assert cache.match(make([1, 2, 3])) == []
    assert cache.match(make([1, 2, 3], salt="alice")) == [5]


def test_the_first_block_with_a_content_stays_the_entry():
    cache = PrefixCache(2)
    cache.register(make([1, 2, 3], blocks=(5,)), 0, 1)
    assert cache.register(make([1, 2, 3], blocks=(6,)), 0, 1) == []
    assert cache.match(make([1, 2, 3])) == [5]


def test_an_evicted_block_matches_no_more_nor_does_what_followed_it():
    cache = PrefixCache(2)
    cache.register(make([1, 2, 3, 4], blocks=(5, 6)), 0, 2)
    cache.forget(5)
    assert cache.match(make([1, 2, 3, 4, 0])) == []
    assert cache.register(make([1, 2, 3], blocks=(7,)), 0, 1) == [7]
    assert cache.match(make([1, 2, 3, 4, 0])) == [7, 6]


def test_token_ids_are_hashed_whole_not_by_their_last_bytes():
    cache = PrefixCache(1)
    cache.register(make([1, 0], blocks=(5,)), 0, 1)
    assert cache.match(make([257, 0])) == []
    assert cache.match(make([1 + 2**16, 0])) == []
