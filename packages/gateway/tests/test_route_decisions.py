"""Which engine gets a request: the decisions alone, over a clock and figures that are given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deepseek_gateway.route.affinity import affinity_key
from deepseek_gateway.route.breaker import FIRST_REST_S, Breaker, Health, Outcome
from deepseek_gateway.route.budget import Budget, SlowestTwentieth
from deepseek_gateway.route.load import HALF_LIFE_S, LoadReport, load_of, parse_load
from deepseek_gateway.route.pick import BOUND, pick
from deepseek_gateway.route.rendezvous import hash32, score

KEYS = [hash32(f"key {number}".encode()) for number in range(2000)]


def owners(weights: dict[str, float], keys: list[int] = KEYS) -> list[str]:
    """Who each key belongs to."""
    seeds = {name: hash32(name.encode()) for name in weights}
    return [max(weights, key=lambda name: score(key, seeds[name], weights[name])) for key in keys]


@dataclass(frozen=True)
class Engine:
    seed: int
    weight: float


def choose(loads: Sequence[float], key: int | None, random: Random, weights: list[float] | None = None) -> int:
    """The position of the engine that is picked."""
    engines = [Engine(hash32(bytes([at])), weight) for at, weight in enumerate(weights or [1.0] * len(loads))]
    return pick(engines, loads, key, random)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.data())
def test_only_the_keys_of_an_engine_that_leaves_move(number: int, data: st.DataObject) -> None:
    weights = {f"engine {at}": data.draw(st.sampled_from([0.5, 1.0, 2.0])) for at in range(number)}
    gone = data.draw(st.sampled_from(sorted(weights)))
    before = owners(weights, KEYS[:300])
    after = owners({name: weight for name, weight in weights.items() if name != gone}, KEYS[:300])
    assert all(then in {now, gone} for then, now in zip(before, after, strict=True))


def test_keys_are_spread_by_weight() -> None:
    found = owners({"a": 1.0, "b": 1.0, "c": 2.0})
    for name, share in (("a", 0.25), ("b", 0.25), ("c", 0.5)):
        assert found.count(name) / len(found) == pytest.approx(share, abs=0.04)


def test_an_owner_keeps_its_requests_up_to_the_bound_and_no_further() -> None:
    random = Random(1)
    key = KEYS[0]
    owner = choose([0.0] * 4, key, random)
    loads = [4.0] * 4
    loads[owner] = 5.0  # with this request 6 of 18: the bound is 1.25 * 18 / 4 = 5.625, rounded up
    assert choose(loads, key, random) == owner
    loads[owner] = 6.0
    assert choose(loads, key, random) != owner


@given(st.lists(st.integers(0, 40), min_size=2, max_size=8), st.integers(0, 2**32 - 1))
def test_with_affinity_nobody_is_loaded_over_the_bound(loads: list[int], key: int) -> None:
    chosen = choose(loads, key, Random(0))
    assert loads[chosen] + 1 <= math.ceil(BOUND * (sum(loads) + 1) / len(loads))


def test_without_affinity_the_less_loaded_of_two_is_taken_and_the_most_loaded_never() -> None:
    random = Random(3)
    picks = [choose([9.0, 1.0, 5.0, 2.0], None, random) for _ in range(400)]
    assert 0 not in picks
    assert picks.count(1) > picks.count(3) > picks.count(2)


def test_alike_engines_share_by_weight_and_one_of_twice_the_weight_bears_twice_the_load() -> None:
    random, in_flight = Random(5), [0, 0, 0]
    weights = [1.0, 1.0, 2.0]
    for _ in range(400):
        in_flight[choose(in_flight, None, random, weights)] += 1
    assert in_flight[2] == pytest.approx(200, abs=12)


CHAT = [
    {"role": "system", "content": "You are a helpful assistant of the harbour office. " * 2},
    {"role": "user", "content": "When does the ferry leave?"},
]


def test_all_turns_of_a_conversation_have_one_key_and_other_callers_another() -> None:
    first = affinity_key({"messages": CHAT}, "key", None)
    later = [*CHAT, {"role": "assistant", "content": "At nine."}, {"role": "user", "content": "And then?"}]
    assert first is not None
    assert affinity_key({"messages": later}, "key", None) == first
    assert affinity_key({"messages": CHAT}, "other key", None) != first
    assert affinity_key({"messages": later}, "key", "session 7") == affinity_key({"prompt": "x"}, "key", "session 7")


def test_a_long_beginning_alone_counts_and_a_short_prompt_has_no_key() -> None:
    long = "All the rules of the house. " * 100
    assert affinity_key({"prompt": long + "a"}, "key", None) == affinity_key({"prompt": long + "b"}, "key", None)
    assert affinity_key({"prompt": list(range(4000))}, "key", None) == affinity_key(
        {"prompt": list(range(5000))}, "key", None
    )
    for fields in ({"prompt": "short"}, {"messages": "no list"}, {"messages": [1]}, {}, {"prompt": None}):
        assert affinity_key(fields, "key", None) is None


OURS = b"""# HELP deepseek_engine_requests_running Sequences in the batch
deepseek_engine_requests_running 5.0
deepseek_engine_requests_waiting 3.0
deepseek_engine_kv_blocks_used 48.0
deepseek_engine_kv_blocks_total 64.0
"""
VLLM = b"""vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.75
"""
SGLANG = b"""sglang:num_running_reqs{model_name="m"} 5.0
sglang:num_queue_reqs{model_name="m"} 3.0
sglang:token_usage{model_name="m"} 0.75
"""


@pytest.mark.parametrize("text", [OURS, VLLM, SGLANG])
def test_load_is_read_from_the_figures_of_three_makers(text: bytes) -> None:
    assert parse_load(text, 6, 10.0) == LoadReport(5, 3, 0.75, 2, 10.0)


@given(st.binary(max_size=300))
def test_what_is_no_report_is_none(text: bytes) -> None:
    assert parse_load(text, 0, 0.0) is None
    assert parse_load(b"vllm:num_requests_running NaN\n" + text, 0, 0.0) is None


def test_a_report_counts_less_the_older_it_is_and_a_full_cache_counts_as_load() -> None:
    report = LoadReport(running=8, waiting=4, kv_use=0.5, foreign=10, at_s=0.0)
    assert load_of(2, report, 0.0) == 16
    assert load_of(2, report, HALF_LIFE_S) == 9
    assert load_of(2, report, 60.0) == 2
    assert load_of(2, None, 0.0) == 2
    full = LoadReport(running=8, waiting=4, kv_use=1.0, foreign=10, at_s=0.0)
    assert load_of(2, full, 0.0) == 32


@given(st.lists(st.booleans(), max_size=300), st.floats(0, 0.5))
def test_extras_are_never_more_than_their_share_of_requests(wishes: list[bool], share: float) -> None:
    budget, extras = Budget(share, 10.0), 0
    for requests, wish in enumerate(wishes, 1):
        budget.earn()
        extras += wish and budget.spend()
        assert extras <= share * requests + 1e-6


def test_the_slowest_twentieth_is_known_after_enough_and_follows() -> None:
    times = SlowestTwentieth()
    for number in range(49):
        times.add(number / 100)
    assert times.value is None
    for _ in range(300):
        times.add(2.0)
    assert times.value == 2.0


def test_faults_in_a_row_open_the_breaker_and_one_request_tries_after_each_longer_rest() -> None:
    breaker = Breaker(max_rest_s=30.0, max_consecutive=3)
    opened = [breaker.note(Outcome.FAULT, 0.0, may_eject=True) for _ in range(3)]
    assert opened == [False, False, True]
    now = 0.0
    for rest in (FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S):
        assert not breaker.may_try(now + rest - 0.01)
        now += rest
        assert breaker.may_try(now)
        assert breaker.begin()
        assert not breaker.may_try(now)  # only one
        breaker.note(Outcome.FAULT, now, may_eject=True)
    assert breaker.begin()
    breaker.note(Outcome.GOOD, now, may_eject=True)
    assert breaker.is_up
    assert breaker.may_try(now)


def test_the_rate_opens_it_too_and_the_cap_keeps_it_closed() -> None:
    for may_eject in (True, False):
        breaker = Breaker(30.0)
        outcomes = [Outcome.SICK, Outcome.SICK, Outcome.GOOD] * 20
        opened = [breaker.note(outcome, 0.0, may_eject=may_eject) for outcome in outcomes if breaker.is_up]
        assert any(opened) is may_eject


@pytest.mark.parametrize("outcome", [Outcome.GONE, Outcome.BUSY])
def test_what_is_gone_or_takes_nothing_is_left_alone_whatever_the_cap(outcome: Outcome) -> None:
    breaker = Breaker(30.0)
    assert breaker.note(outcome, 0.0, may_eject=False, retry_after_s=7.0)
    assert not breaker.may_try(6.9)
    assert breaker.may_try(7.0)
    assert breaker.may_probe(1.0) is (outcome is Outcome.GONE)


def test_retry_after_is_respected_without_calling_the_engine_down() -> None:
    breaker = Breaker(30.0)
    assert not breaker.note(Outcome.THROTTLED, 0.0, may_eject=True, retry_after_s=4.0)
    assert breaker.is_up
    assert not breaker.may_try(3.9)
    assert breaker.may_try(4.0)
    breaker.note(Outcome.THROTTLED, 4.0, may_eject=True, retry_after_s=9999.0)
    assert breaker.may_try(34.0)  # no longer than the longest rest


class BreakerMachine(RuleBasedStateMachine):
    """Requests and probes in any order: one tries at a time, rests have an end, a good answer always brings it back."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(max_rest_s=8.0, max_consecutive=2)
        self.now = 0.0
        self.running = 0
        self.is_tried = False

    @rule(seconds=st.sampled_from([0.1, 1.0, 9.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.may_try(self.now))
    @rule()
    def request_begins(self) -> None:
        trial = self.breaker.begin()
        assert not (trial and self.is_tried)
        self.is_tried = self.is_tried or trial
        self.running += 1

    @precondition(lambda self: self.running)
    @rule(outcome=st.sampled_from(list(Outcome)), may_eject=st.booleans())
    def request_ends(self, outcome: Outcome, may_eject: bool) -> None:
        was = self.breaker.health
        self.running -= 1
        opened = self.breaker.note(outcome, self.now, may_eject=may_eject)
        assert opened is (was is Health.UP and self.breaker.health is Health.DOWN)
        if outcome in {Outcome.GOOD, Outcome.THROTTLED}:
            assert self.breaker.is_up
        if self.breaker.health is not Health.HALF_OPEN:
            self.is_tried = False

    @precondition(lambda self: self.is_tried)
    @rule()
    def trial_gives_up(self) -> None:
        self.breaker.gave_up()
        self.is_tried = False
        assert self.breaker.health is Health.DOWN

    @precondition(lambda self: self.breaker.may_probe(self.now))
    @rule(found=st.booleans())
    def probe(self, found: bool) -> None:
        if found:
            self.breaker.probed(self.now)
            self.is_tried = False
            assert self.breaker.is_up
        else:
            self.breaker.missed(self.now)
            assert not self.breaker.is_up

    @invariant()
    def a_rest_has_an_end(self) -> None:
        assert self.breaker.retry_at_s <= self.now + 8.0
        if self.breaker.health is Health.DOWN:
            assert self.breaker.may_try(self.now + 8.0)


TestBreakerMachine = BreakerMachine.TestCase
