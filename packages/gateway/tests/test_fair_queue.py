"""The order of the admission queue: fair, bounded, and nobody waits for ever."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deepseek_gateway.admit.queue import SHARES, FairQueue, Priority, Waiter
from deepseek_gateway.admit.shed import LoopLag, shed_reason

NORMAL, HIGH, LOW = Priority.NORMAL, Priority.HIGH, Priority.LOW


def waiter(
    name: str, org: str = "o", key: str = "k", priority: Priority = NORMAL, route: str = "r", until: float = 1e9
) -> Waiter[str]:
    return Waiter(name, priority, org, key, route, 0.0, until)


def drain(queue: FairQueue[str], number: int = 10**6) -> list[Waiter[str]]:
    out: list[Waiter[str]] = []
    while len(out) < number and (found := queue.pop(lambda _: True)) is not None:
        out.append(found)
    return out


def test_one_key_is_served_in_order() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for number in range(5):
        queue.push(waiter(str(number)))
    assert [one.item for one in drain(queue)] == ["0", "1", "2", "3", "4"]


def test_an_organisation_with_many_keys_and_requests_gets_one_turn_of_two() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for number in range(60):
        queue.push(waiter("many", org="big", key=f"k{number % 6}"))
    for _ in range(10):
        queue.push(waiter("few", org="small"))
    assert Counter(one.org for one in drain(queue, 20)) == {"big": 10, "small": 10}


def test_keys_of_one_organisation_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for _ in range(30):
        queue.push(waiter("x", key="greedy"))
    for _ in range(5):
        queue.push(waiter("x", key="modest"))
    assert Counter(one.key for one in drain(queue, 10)) == {"greedy": 5, "modest": 5}


def test_classes_share_by_their_weights_and_the_lowest_does_not_starve() -> None:
    queue: FairQueue[str] = FairQueue(1000)
    for priority in Priority:
        for _ in range(200):
            queue.push(waiter("x", priority=priority))
    served = Counter(one.priority for one in drain(queue, 210))
    assert served[HIGH] == 160
    assert abs(served[NORMAL] - 40) <= 1
    assert abs(served[LOW] - 10) <= 1


def test_one_that_comes_again_and_again_gets_no_more_than_those_that_stay() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for org in ("a", "b"):
        for _ in range(30):
            queue.push(waiter("stays", org=org))
    served: Counter[str] = Counter()
    for _ in range(30):
        if not any(one.org == "comes and goes" for one in queue):
            queue.push(waiter("again", org="comes and goes"))
        (one,) = drain(queue, 1)
        served[one.org] += 1
    assert max(served.values()) - min(served.values()) <= 1


def test_a_stream_of_new_organisations_does_not_starve_one_that_waits() -> None:
    queue: FairQueue[str] = FairQueue(100)
    queue.push(waiter("first", org="old"))
    queue.push(waiter("second", org="old"))
    served: list[str] = []
    for number in range(20):
        queue.push(waiter("new", org=f"new {number}"))
        queue.push(waiter("new", org=f"newer {number}"))
        served += [one.item for one in drain(queue, 1)]
    assert "second" in served


def test_those_that_cannot_go_let_others_pass_and_keep_their_place() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.push(waiter("blocked", route="full"))
    queue.push(waiter("free", route="empty"))
    asked: list[str] = []

    def can_go(one: Waiter[str]) -> bool:
        asked.append(one.route)
        return one.route == "empty"

    found = queue.pop(can_go)
    assert found is not None
    assert found.item == "free"
    assert queue.pop(can_go) is None
    assert asked == ["full", "empty", "full"]  # each route once a turn
    assert [one.item for one in drain(queue)] == ["blocked"]


def test_one_that_was_blocked_has_not_saved_up_turns() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for _ in range(20):
        queue.push(waiter("x", org="blocked", route="full"))
        queue.push(waiter("x", org="free"))
    for _ in range(10):
        assert queue.pop(lambda one: one.route != "full") is not None
    assert Counter(one.org for one in drain(queue, 10))["blocked"] <= 6


def test_the_late_are_found_and_the_rest_stays() -> None:
    queue: FairQueue[str] = FairQueue(10)
    early, late = waiter("early", until=5.0), waiter("late", until=9.0)
    queue.push(early)
    queue.push(late)
    assert queue.late(5.0) == [early]
    assert not queue.remove(early)
    assert queue.clear() == [late]
    assert len(queue) == 0


class QueueMachine(RuleBasedStateMachine):
    """Any order of coming, going and giving up."""

    capacity = 12

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(self.capacity)
        self.waiting: list[Waiter[int]] = []
        self.passed_over: Counter[int] = Counter()
        self.number = 0

    @precondition(lambda self: not self.queue.is_full)
    @rule(
        org=st.sampled_from("abc"),
        key=st.sampled_from("xy"),
        priority=st.sampled_from(list(Priority)),
        route=st.sampled_from(["p", "q"]),
    )
    def comes(self, org: str, key: str, priority: Priority, route: str) -> None:
        self.number += 1
        one = Waiter(self.number, priority, org, f"{org}{key}", route, 0.0, 1e9)
        self.queue.push(one)
        self.waiting.append(one)

    @rule(full=st.sets(st.sampled_from(["p", "q"])))
    def one_goes(self, full: set[str]) -> None:
        found = self.queue.pop(lambda one: one.route not in full)
        able = [one for one in self.waiting if one.route not in full]
        assert (found is None) == (not able)
        if found is None:
            return
        assert found in able
        # First come, first served among those of one key and class that can go.
        like = [one for one in able if (one.priority, one.key) == (found.priority, found.key)]
        assert found is like[0]
        self.waiting.remove(found)
        for one in able:
            if one is not found:
                self.passed_over[one.item] += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def gives_up(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        assert self.queue.remove(one)
        assert not self.queue.remove(one)
        self.waiting.remove(one)

    @invariant()
    def nobody_is_lost_or_there_twice(self) -> None:
        assert sorted(one.item for one in self.queue) == sorted(one.item for one in self.waiting)
        assert len(self.queue) == len(self.waiting) <= self.capacity
        for priority in Priority:
            assert self.queue.length(priority) == sum(one.priority is priority for one in self.waiting)

    @invariant()
    def nobody_starves(self) -> None:
        # 21 turns are a round of all classes; 3 organisations, 2 keys, and at most all places of a key before one.
        most = sum(SHARES.values()) * 3 * 2 * self.capacity
        assert all(self.passed_over[one.item] <= most for one in self.waiting)

    def teardown(self) -> None:
        out: list[int] = []
        while (found := self.queue.pop(lambda _: True)) is not None:
            out.append(found.item)
        assert sorted(out) == sorted(one.item for one in self.waiting)


TestQueueMachine = QueueMachine.TestCase


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(list(Priority)), min_size=1, max_size=6), st.integers(1, 8))
def test_a_waiter_is_served_within_a_round_while_others_keep_coming(others: list[Priority], orgs: int) -> None:
    """The lowest class, against a flood: it goes after at most the turns of the classes above it."""
    queue: FairQueue[str] = FairQueue(10**4)
    queue.push(waiter("patient", priority=LOW, org="patient"))
    for turn in range(int(sum(SHARES.values())) * (orgs + 2)):
        for priority in others:
            queue.push(waiter("flood", priority=priority, org=f"org {turn % orgs}"))
        if any(one.item == "patient" for one in drain(queue, 1)):
            return
    raise AssertionError("it starves")


def test_the_lowest_class_is_turned_away_first() -> None:
    def reason(priority: Priority, lag_s: float = 0.0, waiting: tuple[float | None, ...] = (0.0,)) -> str | None:
        return shed_reason(priority, lag_s, 1.0, waiting, 100)

    assert [reason(priority, lag_s=1.1) for priority in (HIGH, NORMAL, LOW)] == [None, "loop_lag", "loop_lag"]
    assert [reason(priority, waiting=(60.0,)) for priority in (HIGH, NORMAL, LOW)] == [None, None, "engine_queue"]
    assert reason(NORMAL, waiting=(100.0, 99.0)) is None
    assert reason(NORMAL, waiting=(100.0, None)) is None
    assert reason(NORMAL, waiting=()) is None
    assert reason(NORMAL, waiting=(100.0, 300.0)) == "engine_queue"
    assert shed_reason(NORMAL, 99.0, 0.0, (10**6,), 0) is None


def test_one_late_moment_is_no_lag_and_a_late_loop_is() -> None:
    lag = LoopLag()
    lag.note(2.0)
    assert lag.seconds < 1.0
    for _ in range(5):
        lag.note(2.0)
    assert lag.seconds > 1.0
    for _ in range(10):
        lag.note(0.0)
    assert lag.seconds < 0.1
