"""Adapters and requests against each other: turns, cancellations, failures and unloading, on a fake model.

Files are "read" when the test says so, which makes the reader thread's timing part of the test.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import AdapterError, UnknownAdapterError
from deepseek_engine.lora import pool
from deepseek_engine.messages import AdapterReply, Delta, LoadAdapter, Submit, UnloadAdapter
from deepseek_engine.runner_protocol import RunnerInfo
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence
from deepseek_engine.testing import fake_runner
from deepseek_engine.testing.fake_launcher import FakeLauncher
from deepseek_engine.testing.fake_runner import FakeRunner, expected_tokens

MAX_LORAS = 2
PREFIX = 400
"""An adapter's path is a number; its model answers as if the prompt began with PREFIX plus that number."""


@dataclass(frozen=True)
class Content:
    token_id: int
    max_rank: int = 1
    num_bytes: int = 1


class FakeHost:
    def __init__(self) -> None:
        self.installed: dict[int, Content] = {}

    def read(self, path: str) -> Content:
        if not path.isdigit():
            raise AdapterError(f"{path} is no adapter")
        return Content(PREFIX + int(path))

    def install(self, adapter_id: int, adapter: Content) -> None:
        assert adapter_id not in self.installed
        self.installed[adapter_id] = adapter
        assert len(self.installed) <= MAX_LORAS

    def remove(self, adapter_id: int) -> None:
        del self.installed[adapter_id]


class AdaptedRunner(FakeRunner):
    """Fake answers that also depend on the adapter; a sequence whose adapter is not in memory fails the step."""

    def __init__(self, info: RunnerInfo) -> None:
        super().__init__(info)
        self.adapters: Any = FakeHost()
        self._makers: dict[int, list[int]] = {}

    def _write(self, scheduled: ScheduledSequence) -> None:
        super()._write(scheduled)
        start = scheduled.sequence.num_computed_tokens
        for position in range(start, start + scheduled.num_new_tokens):
            self._makers[self._slot(scheduled.sequence.block_table, position)] = self._prefix(scheduled)

    def _read_digest(self, scheduled: ScheduledSequence, offset: int) -> bytes:
        sequence, prefix = scheduled.sequence, self._prefix(scheduled)
        slots = [
            self._slot(sequence.block_table, i) for i in range(sequence.num_computed_tokens + scheduled.num_new_tokens)
        ]
        assert all(self._makers[slot] == prefix for slot in slots), "keys of another adapter"
        return fake_runner._digest([*prefix, *(self._slots[slot] for slot in slots)])

    def _prefix(self, scheduled: ScheduledSequence) -> list[int]:
        number = scheduled.sequence.adapter_id
        return [self.adapters.installed[number].token_id] if number else []


class Reader:
    """Stands in for the thread: reads one file when told to."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.pending: list[tuple[Callable[..., None], Sequence[Any]]] = []

    def submit(self, work: Callable[..., None], *args: Any) -> None:
        self.pending.append((work, args))

    def read_one(self) -> bool:
        if self.pending:
            work, args = self.pending.pop(0)
            work(*args)
        return bool(self.pending)


class Bench:
    """An engine with adapters "1" to "6" known, of which two fit in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, overlap: bool = False) -> None:
        monkeypatch.setattr(pool, "ThreadPoolExecutor", Reader)
        info = RunnerInfo(
            max_model_len=256, vocab_size=512, num_blocks=24, block_size=4, dtype="float32", device="cpu",
            weight_bytes=0, kv_cache_bytes=0,
        )  # fmt: skip
        config = EngineConfig(
            model="fake", max_num_seqs=4, max_num_batched_tokens=16, enable_lora=True, max_loras=MAX_LORAS,
            lora_modules=tuple((str(number), str(number)) for number in range(1, 7)),
        )  # fmt: skip
        self.runner = AdaptedRunner(info)
        if overlap:
            self.runner.launcher = FakeLauncher(self.runner)
        self.engine = Engine(config, self.runner)
        self.reader: Reader = self.engine._pool._thread
        self.answers: dict[tuple[str, int], list[int]] = {}
        self.ends: dict[tuple[str, int], Delta] = {}
        self.replies: list[AdapterReply] = []

    def submit(self, name: str, adapter: str | None, prompt: list[int], *, n: int = 1, max_tokens: int = 6) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, n=n, ignore_eos=True)
        self.engine.add_request(Submit(name, prompt, params, adapter=adapter))

    def step(self) -> None:
        outputs = self.engine.step()
        self.engine._scheduler.check()
        self.replies += outputs.replies
        for delta in outputs.deltas:
            key = (delta.request_id, delta.index)
            self.answers.setdefault(key, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                assert key not in self.ends
                self.ends[key] = delta

    def run(self) -> None:
        for _ in range(2000):
            if not self.engine.has_work and not self.reader.pending:
                break
            self.reader.read_one()
            self.step()
        assert not self.engine.has_requests, "requests are left that nothing will ever end"

    def expected(self, adapter: str | None, prompt: list[int], count: int) -> list[int]:
        return expected_tokens([PREFIX + int(adapter), *prompt] if adapter else prompt, count)


@pytest.fixture(params=[False, True], ids=["plain", "overlap"])
def bench(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Bench]:
    return Bench(monkeypatch, overlap=request.param)


def test_every_request_is_answered_by_its_adapter_however_many_take_turns(bench: Bench) -> None:
    prompts = {f"r{i}": (str(i % 6 + 1) if i % 7 else None, [i + 1, 2, 3, 4, 5, 6]) for i in range(40)}
    for name, (adapter, prompt) in prompts.items():
        bench.submit(name, adapter, prompt)
    bench.run()
    for name, (adapter, prompt) in prompts.items():
        assert bench.answers[name, 0] == bench.expected(adapter, prompt, 6)


def test_an_equal_prompt_never_shares_keys_with_another_adapter(bench: Bench) -> None:
    prompt = list(range(1, 20))
    for name, adapter in (("base", None), ("one", "1"), ("two", "2"), ("one-again", "1")):
        bench.submit(name, adapter, prompt)
        bench.run()
    assert [bench.ends[name, 0].num_cached_tokens for name in ("base", "one", "two", "one-again")] == [0, 0, 0, 16]


def test_all_answers_of_a_request_have_its_adapter(bench: Bench) -> None:
    bench.submit("r", "5", [1, 2, 3, 4, 5, 6, 7], n=3)
    bench.engine.cancel("r", 0)  # while it waits for the file
    bench.run()
    for index in (1, 2):
        assert bench.answers["r", index] == bench.expected("5", [1, 2, 3, 4, 5, 6, 7], 6)
    assert bench.ends["r", 0].finish_reason == "abort"


def test_a_wanted_adapter_gets_its_turn_however_many_come_for_the_others(bench: Bench) -> None:
    for step in range(200):
        bench.submit(f"hog-{step}", "12"[step % 2], [step + 1, 5], max_tokens=8)
        if step == 20:
            bench.submit("patient", "3", [1, 2, 3])
        bench.reader.read_one()
        bench.step()
        if ("patient", 0) in bench.ends:
            break
    assert ("patient", 0) in bench.ends


def test_an_adapter_stays_while_a_step_with_a_row_of_it_is_under_way(bench: Bench) -> None:
    expected = bench.expected("1", [1, 2, 3], 3)
    params = SamplingParams(temperature=0.0, max_tokens=20)
    bench.engine.add_request(Submit("stops", [1, 2, 3], params, eos_token_ids=(expected[2],), adapter="1"))
    bench.submit("beside", None, [1, 2, 3], max_tokens=20)
    bench.engine.inbox.append(UnloadAdapter(1, "1"))
    bench.run()
    assert bench.answers["stops", 0] == expected
    assert bench.engine.step().stats.sync_points.get("failure", 0) == 0, "the row behind the stop found its adapter"
    assert 1 not in {adapter.token_id - PREFIX for adapter in bench.runner.adapters.installed.values()}


def test_requests_finish_with_the_adapter_that_was_unloaded_meanwhile(bench: Bench) -> None:
    bench.submit("running", "1", [1, 2, 3], max_tokens=20)
    bench.submit("parked", "4", [1, 2, 3])
    bench.step()
    bench.engine.inbox.extend([UnloadAdapter(1, "1"), UnloadAdapter(2, "4")])
    bench.step()
    for name in ("1", "4"):
        with pytest.raises(UnknownAdapterError):
            bench.submit("late", name, [1])
    bench.run()
    assert bench.answers["running", 0] == bench.expected("1", [1, 2, 3], 20)
    assert bench.answers["parked", 0] == bench.expected("4", [1, 2, 3], 6)
    names = {adapter.token_id - PREFIX for adapter in bench.runner.adapters.installed.values()}
    assert not names & {1, 4}, "nobody can ask for them any more"


def test_a_replaced_adapter_serves_old_requests_as_it_was_and_new_ones_as_it_is(bench: Bench) -> None:
    bench.submit("old", "1", [1, 2, 3], max_tokens=20)
    bench.step()
    bench.engine.inbox.append(LoadAdapter(7, "1", "9", replace=True))
    bench.step()
    bench.reader.read_one()
    bench.step()
    bench.submit("new", "1", [1, 2, 3])
    bench.run()
    assert bench.answers["old", 0] == bench.expected("1", [1, 2, 3], 20)
    assert bench.answers["new", 0] == bench.expected("9", [1, 2, 3], 6)
    assert [reply.call_id for reply in bench.replies] == [7]


def test_requests_of_an_adapter_that_cannot_be_read_again_end_with_the_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit("r", "6", [1, 2, 3], n=2)
    monkeypatch.setattr(bench.runner.adapters, "read", lambda path: Content(1 // 0))
    bench.run()
    for index in (0, 1):
        assert bench.ends["r", index].finish_reason == "error"
        assert "'6' could not be loaded again" in (bench.ends["r", index].error or "")
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (LoadAdapter(1, "new", "nonsense"), "nonsense is no adapter"),
        (LoadAdapter(1, "2", "2"), "loaded already"),
        (UnloadAdapter(1, "nobody"), "no adapter 'nobody'"),
    ],
)
def test_a_call_that_fails_says_why(bench: Bench, call: LoadAdapter | UnloadAdapter, reason: str) -> None:
    bench.engine.inbox.append(call)
    bench.run()
    assert len(bench.replies) == 1
    assert reason in (bench.replies[0].error or "")


@pytest.mark.parametrize("seed", range(8))
def test_random_requests_cancels_and_reloads_leave_nothing_behind(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    asked: dict[str, tuple[str | None, list[int]]] = {}
    for number in range(400):
        action = rng.random()
        if action < 0.3:
            name, adapter = f"r{number}", rng.choice([None, *"123456"])
            prompt = [rng.randrange(1, 300) for _ in range(rng.randrange(1, 30))]
            asked[name] = (adapter, prompt)
            bench.submit(name, adapter, prompt, n=rng.choice([1, 1, 3]), max_tokens=rng.randrange(1, 9))
        elif action < 0.4 and asked:
            bench.engine.cancel(rng.choice(list(asked)), rng.choice([None, 0, 1]))
        elif action < 0.45:
            name = rng.choice("123456")
            bench.engine.inbox.extend([UnloadAdapter(number, name), LoadAdapter(number, name, name)])
            bench.replies.clear()
            while not any(reply.adapter for reply in bench.replies):
                bench.step()
                bench.reader.read_one()
        if rng.random() < 0.3:
            bench.reader.read_one()
        bench.step()
    bench.run()
    for (name, index), answer in bench.answers.items():
        adapter, prompt = asked[name]
        assert answer == bench.expected(adapter, prompt, len(answer)), (name, index)
    assert set(bench.ends) >= {(name, 0) for name in asked}
    assert all(delta.finish_reason in {"length", "abort"} for delta in bench.ends.values())
    assert bench.engine._pool.num_parked == 0
