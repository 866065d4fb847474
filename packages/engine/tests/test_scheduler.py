from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.scheduler import Scheduler
from deepseek_engine.sequence import Sequence, SequenceStatus


def make_scheduler(**settings: int | bool) -> Scheduler:
    defaults: dict[str, int | bool] = {
        "num_blocks": 64,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "enable_prefix_caching": False,
    }
    return Scheduler(**(defaults | settings))  # pyright: ignore[reportArgumentType]


def add(scheduler: Scheduler, name: str, num_prompt_tokens: int, *, first_token: int = 0, forks: int = 0) -> Sequence:
    def make(index: int) -> Sequence:
        token_ids = list(range(first_token, first_token + num_prompt_tokens))
        return Sequence(name, index, token_ids, SamplingParams(), sampling_seed=0, max_total_tokens=num_prompt_tokens)

    leader = make(0)
    for index in range(1, forks + 1):
        fork = make(index)
        fork.status = SequenceStatus.PENDING
        leader.forks.append(fork)
    scheduler.add(leader)
    return leader


def step(scheduler: Scheduler) -> dict[str, int]:
    """Run a step in which every sampled token is 99; the number of tokens that each sequence computed."""
    batch = scheduler.schedule()
    sampled = [scheduled.sequence for scheduled in batch if scheduled.needs_token]
    scheduler.commit(batch)
    for sequence in sampled:
        sequence.token_ids.append(99)
    scheduler.check()
    return {_name(scheduled.sequence): scheduled.num_new_tokens for scheduled in batch}


def _name(sequence: Sequence) -> str:
    return f"{sequence.request_id}{sequence.index or ''}"


def test_decodes_get_their_token_before_prefills_share_the_rest_of_the_budget():
    scheduler = make_scheduler(max_num_batched_tokens=10)
    add(scheduler, "a", 3)
    assert step(scheduler) == {"a": 3}
    add(scheduler, "b", 25)
    add(scheduler, "c", 2)
    assert step(scheduler) == {"a": 1, "b": 9}
    assert step(scheduler) == {"a": 1, "b": 9}
    assert step(scheduler) == {"a": 1, "b": 7, "c": 2}
    assert step(scheduler) == {"a": 1, "b": 1, "c": 1}


def test_a_younger_decode_goes_before_an_older_prefill_that_would_use_the_budget_up():
    scheduler = make_scheduler(max_num_batched_tokens=8, max_num_seqs=2, num_blocks=100)
    old = add(scheduler, "old", 3)
    step(scheduler)
    add(scheduler, "new", 3)
    step(scheduler)
    old.token_ids += range(30)  # as many tokens to catch up with as a prefill
    old.block_table += [scheduler.allocator.allocate() for _ in range(8)]
    assert step(scheduler) == {"new": 1, "old": 7}


def test_sequences_beyond_max_num_seqs_wait_in_order_of_arrival():
    scheduler = make_scheduler(max_num_seqs=2)
    first = add(scheduler, "a", 2)
    for name in "bcd":
        add(scheduler, name, 2)
    assert step(scheduler) == {"a": 2, "b": 2}
    scheduler.finish(first)
    assert step(scheduler) == {"b": 1, "c": 2}
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)


def test_a_small_request_does_not_overtake_a_large_one_that_waits_for_blocks():
    scheduler = make_scheduler(num_blocks=8)
    first = add(scheduler, "a", 20)
    step(scheduler)
    add(scheduler, "large", 16)
    add(scheduler, "small", 1)
    assert step(scheduler) == {"a": 1}
    scheduler.finish(first)
    assert step(scheduler) == {"large": 16, "small": 1}


def test_out_of_blocks_the_last_to_arrive_is_preempted_and_later_recomputes_all_its_tokens():
    scheduler = make_scheduler(num_blocks=5)
    old, new = add(scheduler, "old", 7), add(scheduler, "new", 7)
    assert step(scheduler) == {"old": 7, "new": 7}
    assert step(scheduler) == {"old": 1, "new": 1}
    # Both are full at 8 tokens and there is one block left; old takes it.
    assert step(scheduler) == {"old": 1}
    assert new.status is SequenceStatus.WAITING
    assert (new.block_table, new.num_computed_tokens, new.num_output_tokens) == ([], 0, 2)
    assert scheduler.num_preemptions == 1
    scheduler.finish(old)
    assert step(scheduler) == {"new": 9}


def test_a_preempted_sequence_stays_ahead_of_those_that_came_after_it():
    scheduler = make_scheduler(num_blocks=5, max_num_seqs=2)
    old = add(scheduler, "old", 7)
    add(scheduler, "new", 7)
    step(scheduler)
    add(scheduler, "newest", 1)
    step(scheduler)
    assert step(scheduler) == {"old": 1}
    scheduler.finish(old)
    assert list(step(scheduler)) == ["new", "newest"]


def test_a_prefill_under_way_can_be_preempted_and_cancelled():
    scheduler = make_scheduler(num_blocks=7, max_num_seqs=2, max_num_batched_tokens=2)
    old = add(scheduler, "old", 1)
    step(scheduler)
    new = add(scheduler, "new", 15)
    while len(old.token_ids) < 13:
        assert step(scheduler) == {"old": 1, "new": 1}
    assert 0 < new.num_computed_tokens < 15
    # The block for old's next token can only come from the prefill that is half done.
    assert step(scheduler) == {"old": 1}
    assert (new.status, new.num_computed_tokens, new.block_table) == (SequenceStatus.WAITING, 0, [])
    scheduler.finish(new)
    assert step(scheduler) == {"old": 1}
    assert scheduler.num_waiting == 0


def test_a_sequence_alone_in_the_cache_runs_to_the_last_block():
    scheduler = make_scheduler(num_blocks=4)
    add(scheduler, "a", 9)
    add(scheduler, "b", 1)
    steps = [step(scheduler) for _ in range(8)]
    assert steps[-1] == {"a": 1}
    assert scheduler.num_running == 1


def test_finishing_frees_blocks_in_every_state():
    scheduler = make_scheduler(max_num_seqs=1, max_num_batched_tokens=4)
    decoding = add(scheduler, "decoding", 3)
    step(scheduler)
    waiting = add(scheduler, "waiting", 3)
    scheduler.finish(waiting)
    scheduler.finish(decoding)
    prefilling = add(scheduler, "prefilling", 11)
    assert step(scheduler) == {"prefilling": 4}
    scheduler.finish(prefilling)
    assert scheduler.allocator.num_free == 64
    assert not scheduler.has_work
    assert step(scheduler) == {}


def test_an_equal_beginning_is_computed_once():
    scheduler = make_scheduler(enable_prefix_caching=True)
    first = add(scheduler, "a", 10)
    step(scheduler)
    second = add(scheduler, "b", 10)
    assert step(scheduler) == {"a": 1, "b": 2}
    assert second.num_cached_tokens == 8
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]


def test_blocks_that_are_not_computed_yet_are_not_shared():
    scheduler = make_scheduler(enable_prefix_caching=True, max_num_batched_tokens=10)
    add(scheduler, "a", 16)
    assert step(scheduler) == {"a": 10}
    late = add(scheduler, "b", 16)
    step(scheduler)
    assert late.num_cached_tokens == 8


def test_a_finished_sequence_leaves_its_prefix_to_the_next_until_the_blocks_are_needed():
    scheduler = make_scheduler(enable_prefix_caching=True, num_blocks=4)
    first = add(scheduler, "a", 9)
    step(scheduler)
    scheduler.finish(first)
    assert scheduler.allocator.num_free == 4
    second = add(scheduler, "b", 9)
    assert step(scheduler) == {"b": 1}
    scheduler.finish(second)
    other = add(scheduler, "other", 15, first_token=100)
    step(scheduler)
    scheduler.finish(other)
    third = add(scheduler, "c", 9)
    assert step(scheduler) == {"c": 9}
    assert third.num_cached_tokens == 0


def test_a_preempted_sequence_finds_its_own_blocks_again():
    scheduler = make_scheduler(num_blocks=5, enable_prefix_caching=True)
    old, new = add(scheduler, "old", 7), add(scheduler, "new", 7, first_token=50)
    for _ in range(3):
        step(scheduler)
    assert new.status is SequenceStatus.WAITING
    scheduler.finish(old)
    assert step(scheduler) == {"new": 1}
    assert new.num_cached_tokens == 8


def test_forks_start_when_the_prompt_is_computed_and_share_its_full_blocks():
    scheduler = make_scheduler(max_num_batched_tokens=8)
    leader = add(scheduler, "a", 10, forks=2)
    first, second = leader.forks
    assert step(scheduler) == {"a": 8}
    assert first.status is SequenceStatus.PENDING
    assert step(scheduler) == {"a": 2}
    assert step(scheduler) == {"a": 1, "a1": 2, "a2": 2}
    assert leader.block_table[:2] == first.block_table[:2] == second.block_table[:2]
    assert len({leader.block_table[2], first.block_table[2], second.block_table[2]}) == 3


def test_a_fork_recomputes_at_least_one_token_of_a_prompt_of_full_blocks():
    scheduler = make_scheduler()
    add(scheduler, "a", 8, forks=1)
    step(scheduler)
    assert step(scheduler) == {"a": 1, "a1": 4}


def test_forks_keep_the_prompt_of_a_first_answer_that_has_ended():
    scheduler = make_scheduler()
    leader = add(scheduler, "a", 10, forks=1)
    step(scheduler)
    scheduler.finish(leader)
    scheduler.check()
    assert step(scheduler) == {"a1": 2}


def test_forks_go_before_requests_that_came_later():
    scheduler = make_scheduler(max_num_seqs=1)
    leader = add(scheduler, "a", 2, forks=1)
    add(scheduler, "later", 2)
    step(scheduler)
    scheduler.finish(leader)
    assert step(scheduler) == {"a1": 2}


def test_another_answer_takes_over_when_the_first_is_cancelled_before_the_prompt_is_computed():
    scheduler = make_scheduler(max_num_batched_tokens=8)
    leader = add(scheduler, "a", 10, forks=3)
    cancelled, _, _ = leader.forks
    step(scheduler)
    scheduler.finish(cancelled)
    scheduler.finish(leader)
    assert step(scheduler) == {"a2": 8}
    assert step(scheduler) == {"a2": 2}
    assert step(scheduler) == {"a2": 1, "a3": 2}


def test_waiting_forks_give_up_the_prompt_rather_than_block_the_only_one_that_could_run():
    scheduler = make_scheduler(num_blocks=5, max_num_seqs=2)
    older = add(scheduler, "older", 1)
    leader = add(scheduler, "a", 5, forks=1)
    (fork,) = leader.forks
    step(scheduler)
    assert len(fork.block_table) == 1
    # `older` takes the first answer's blocks, and at last needs the one that the fork holds back.
    while len(older.token_ids) < 20:
        assert step(scheduler).keys() >= {"older"}
    assert leader.block_table == fork.block_table == []
    scheduler.finish(older)
    assert step(scheduler) == {"a": 13}


def test_nobody_is_admitted_who_would_be_preempted_when_the_others_next_grow():
    scheduler = make_scheduler(num_blocks=5)
    old = add(scheduler, "old", 7)
    step(scheduler)
    add(scheduler, "new", 12)
    while len(old.token_ids) < 20:
        assert step(scheduler) == {"old": 1}
    assert scheduler.num_preemptions == 0
