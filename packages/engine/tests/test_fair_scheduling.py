"""Order of service: priorities, tenants, ageing, deadlines of those who wait, forced preemption."""

from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.scheduler import Scheduler
from deepseek_engine.scheduling.fair_share import MAX_TENANTS, FairShare
from deepseek_engine.scheduling.wait_queue import WaitQueue
from deepseek_engine.sequence import Sequence, SequenceStatus


def make_scheduler(**settings: int | bool | None) -> Scheduler:
    defaults: dict[str, int | bool | None] = {
        "num_blocks": 256,
        "block_size": 4,
        "max_num_seqs": 1,
        "max_num_batched_tokens": 64,
        "enable_prefix_caching": False,
    }
    return Scheduler(**(defaults | settings))  # pyright: ignore[reportArgumentType]


def make(
    name: str, *, tenant: str = "", priority: int = 0, num_prompt_tokens: int = 4, max_tokens: int = 2
) -> Sequence:
    return Sequence(
        name,
        0,
        list(range(num_prompt_tokens)),
        SamplingParams(priority=priority, max_tokens=max_tokens),
        sampling_seed=0,
        tenant=tenant,
        max_total_tokens=num_prompt_tokens + max_tokens,
    )


def add(scheduler: Scheduler, name: str, **fields: object) -> Sequence:
    sequence = make(name, **fields)  # pyright: ignore[reportArgumentType]
    scheduler.add(sequence)
    return sequence


def step(scheduler: Scheduler) -> list[str]:
    """Run a step; the names of the sequences that ended in it."""
    batch = scheduler.schedule()
    sampled = [scheduled.sequence for scheduled in batch if scheduled.needs_token]
    scheduler.commit(batch)
    ended: list[str] = []
    for sequence in sampled:
        sequence.token_ids.append(99)
        if len(sequence.token_ids) == sequence.max_total_tokens:
            scheduler.finish(sequence)
            ended.append(sequence.request_id)
    scheduler.check()
    return ended


def run(scheduler: Scheduler, num_steps: int = 10_000) -> list[str]:
    """The names of the sequences in the order in which they end."""
    ended: list[str] = []
    while scheduler.has_work and num_steps > 0:
        ended += step(scheduler)
        num_steps -= 1
    return ended


def test_a_lower_priority_number_goes_first_and_equals_go_by_arrival():
    scheduler = make_scheduler()
    for name, priority in (("a", 5), ("b", 0), ("c", -1), ("d", 0), ("e", 5)):
        add(scheduler, name, priority=priority)
    assert run(scheduler) == ["c", "b", "d", "a", "e"]


def test_the_worst_priority_is_preempted_first_then_the_latest_arrival():
    scheduler = make_scheduler(num_blocks=8, max_num_seqs=3)
    low = add(scheduler, "low", priority=1, num_prompt_tokens=7, max_tokens=20)
    first = add(scheduler, "first", num_prompt_tokens=7, max_tokens=20)
    second = add(scheduler, "second", num_prompt_tokens=7, max_tokens=20)
    step(scheduler)
    assert {s.status for s in (low, first, second)} == {SequenceStatus.RUNNING}
    step(scheduler)
    step(scheduler)
    assert [s.num_preemptions for s in (low, first, second)] == [1, 0, 0]
    while scheduler.num_preemptions < 2:
        step(scheduler)
    assert [s.num_preemptions for s in (low, first, second)] == [1, 0, 1]


def test_a_flood_from_one_tenant_does_not_hold_up_another():
    scheduler = make_scheduler()
    for number in range(100):
        add(scheduler, f"flood{number}", tenant="loud")
    for _ in range(6):
        step(scheduler)
    add(scheduler, "quiet0", tenant="quiet")
    add(scheduler, "quiet1", tenant="quiet")
    ended = run(scheduler, 12)
    assert ended.index("quiet0") <= 1
    assert ended.index("quiet1") <= 3


def test_tenants_with_work_get_equal_service_whatever_the_size_of_their_requests():
    scheduler = make_scheduler(max_num_seqs=4)
    for number in range(400):
        add(scheduler, f"small{number}", tenant="small", num_prompt_tokens=4, max_tokens=2)
    for number in range(100):
        add(scheduler, f"large{number}", tenant="large", num_prompt_tokens=16, max_tokens=8)
    ended = run(scheduler, 200)
    cost = {  # the last token of an answer is not computed
        "small": sum(name.startswith("small") for name in ended) * (4 + 2 * 1),
        "large": sum(name.startswith("large") for name in ended) * (16 + 2 * 7),
    }
    assert abs(cost["small"] - cost["large"]) < 0.1 * cost["large"]


def test_a_tenant_that_was_away_has_saved_up_nothing():
    scheduler = make_scheduler()
    add(scheduler, "early", tenant="away")
    run(scheduler)
    for number in range(50):
        add(scheduler, f"a{number}", tenant="steady")
    run(scheduler, 60)
    for number in range(20):
        add(scheduler, f"b{number}", tenant="away")
    ended = run(scheduler, 40)
    assert 8 <= sum(name.startswith("b") for name in ended) <= 12, "half of the service, not all of it"


def test_what_comes_from_the_prefix_cache_is_not_charged():
    scheduler = make_scheduler(enable_prefix_caching=True)
    add(scheduler, "a", tenant="a", num_prompt_tokens=33, max_tokens=1)
    run(scheduler)
    first = scheduler._shares.served("a")
    add(scheduler, "b", tenant="a", num_prompt_tokens=33, max_tokens=1)
    run(scheduler)
    assert (first, scheduler._shares.served("a") - first) == (33, 1)
    assert (scheduler.num_prefix_queries, scheduler.num_prefix_hits) == (66, 32)


def test_what_preemption_repeats_is_not_charged_again():
    def served(**settings: int) -> int:
        scheduler = make_scheduler(max_num_seqs=2, **settings)
        add(scheduler, "a", tenant="a", num_prompt_tokens=9, max_tokens=12)
        add(scheduler, "b", tenant="b", num_prompt_tokens=9, max_tokens=12)
        run(scheduler)
        assert (scheduler.num_preemptions > 0) is bool(settings)
        return scheduler._shares.served("b")

    assert served() == served(num_blocks=7) == served(preempt_every_steps=2)


def test_waiting_long_enough_outweighs_a_stream_of_urgent_requests():
    scheduler = make_scheduler(priority_ageing_steps=10)
    add(scheduler, "patient", priority=3)
    ended: list[str] = []
    for number in range(100):
        add(scheduler, f"urgent{number}", priority=0)
        add(scheduler, f"other{number}", priority=0)
        ended += run(scheduler, 2)
    assert 10 < ended.index("patient") < 20  # three levels at 10 steps, two steps a request


def test_ageing_lets_a_quiet_tenant_in_beside_another_tenants_urgent_flood():
    scheduler = make_scheduler(priority_ageing_steps=10)
    for number in range(100):
        add(scheduler, f"flood{number}", tenant="loud", priority=-2)
    add(scheduler, "quiet", tenant="quiet")
    assert 8 <= run(scheduler).index("quiet") <= 12


def test_nobody_ages_past_those_who_asked_for_the_best_level():
    scheduler = make_scheduler(priority_ageing_steps=1)
    waiting = [add(scheduler, str(number), priority=number % 4) for number in range(8)]
    for _ in range(30):
        step(scheduler)
    assert min(sequence.level for sequence in waiting) == 0


def test_an_aged_sequence_keeps_its_level_when_it_is_preempted():
    scheduler = make_scheduler(priority_ageing_steps=2, max_num_seqs=1)
    add(scheduler, "first", max_tokens=8)
    add(scheduler, "second", max_tokens=8)
    aged = add(scheduler, "aged", priority=2)
    run(scheduler, 7)
    assert aged.level == 0
    scheduler.schedule()
    aged_rank = aged.level
    run(scheduler)
    assert aged.level == aged_rank


def test_cancelling_those_who_wait_takes_time_that_does_not_grow_with_their_number():
    shares = FairShare()
    queue = WaitQueue(shares, 1000)
    waiting = [make(str(number), tenant=str(number % 7), priority=number % 3) for number in range(2000)]
    for number, sequence in enumerate(waiting):
        sequence.arrival = number
        queue.push(sequence)
    for sequence in waiting[5:]:
        queue.remove(sequence)
        assert (
            sum(len(line._heap) for level in queue._levels.values() for line in level.lines.values())
            < 2 * len(queue) + 16 * 21 + 1
        )
    queue.check()
    left = []
    while queue:
        left.append(queue.peek())
        queue.remove(left[-1])
    assert {sequence.request_id for sequence in left} == {"0", "1", "2", "3", "4"}


def test_counters_of_tenants_are_bounded_and_the_heaviest_are_kept():
    shares = FairShare()
    for number in range(3 * MAX_TENANTS):
        shares.join(str(number))
        shares.charge(str(number), number)
    assert len(shares._served) <= 2 * MAX_TENANTS
    assert shares.served(str(3 * MAX_TENANTS - 1)) == 3 * MAX_TENANTS - 1


def test_preempting_every_step_still_brings_every_sequence_to_its_end():
    scheduler = make_scheduler(preempt_every_steps=1, max_num_seqs=3, max_num_batched_tokens=3)
    for number in range(5):
        add(scheduler, str(number), num_prompt_tokens=10, max_tokens=5)
    assert sorted(run(scheduler)) == ["0", "1", "2", "3", "4"]
    assert scheduler.num_preemptions >= 15


def test_after_memory_ran_out_batches_are_smaller_and_grow_again_slowly():
    scheduler = make_scheduler(max_num_seqs=8, max_num_batched_tokens=64)
    sequences = [add(scheduler, str(number), num_prompt_tokens=16, max_tokens=400) for number in range(4)]
    batch = scheduler.schedule()
    assert sum(scheduled.num_new_tokens for scheduled in batch) == 64
    assert scheduler.back_off(batch)
    scheduler.check()
    assert sum(scheduled.num_new_tokens for scheduled in scheduler.schedule()) == 32
    while scheduler.budget.tokens < 64:
        before = scheduler.budget.tokens
        step(scheduler)
        assert scheduler.budget.tokens - before in (0, 4)
    assert all(sequence.num_output_tokens > 200 for sequence in sequences)


def test_when_decodes_alone_run_out_of_memory_the_last_of_them_wait():
    scheduler = make_scheduler(max_num_seqs=8)
    sequences = [add(scheduler, str(number), max_tokens=50) for number in range(8)]
    step(scheduler)
    batch = scheduler.schedule()
    assert len(batch) == 8
    assert scheduler.back_off(batch)
    assert (scheduler.num_running, scheduler.num_waiting) == (4, 4)
    assert [sequence.num_preemptions for sequence in sequences] == [0] * 4 + [1] * 4
    assert len(scheduler.schedule()) == 4
    batch = scheduler.schedule()
    assert scheduler.back_off(batch)
    assert scheduler.back_off(scheduler.schedule())
    assert not scheduler.back_off(scheduler.schedule()), "a single token cannot be halved"
    assert len(run(scheduler)) == 8
