"""Runs recorded and replayed on the fake model, whose every token depends on all before it."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.messages import Cancel, Submit
from deepseek_engine.request_log.log_file import LogFile
from deepseek_engine.request_log.reader import RequestLogError, read_request_log
from deepseek_engine.request_log.recorder import RequestRecorder, with_seed
from deepseek_engine.request_log.replay import Comparison, Replay, changes_since, replay_config
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.fake_runner import FakeRunner, build_fake_runner

CONFIG = EngineConfig(model="fake", num_kv_blocks=64, max_num_seqs=4, max_num_batched_tokens=64)
PARAMS = [
    SamplingParams(max_tokens=12),
    SamplingParams(max_tokens=9, seed=3, n=3),
    SamplingParams(max_tokens=30, temperature=0.0, priority=2),
    SamplingParams(max_tokens=5, seed=-1, deadline_s=3600.0),
]


def record(path: Path, submits: list[Submit], cancel: Callable[[int, Engine], None] | None = None) -> None:
    """Run the requests as AsyncEngine and LLM do; `cancel` is called before each step."""
    engine = Engine(CONFIG, build_fake_runner(CONFIG))
    recorder = RequestRecorder(LogFile(path), CONFIG, engine.info)
    for submit in map(with_seed, submits):
        recorder.add(submit, 0)
        engine.add_request(submit)
    step = 0
    while engine.has_work:
        if cancel is not None:
            cancel(step, engine)
        recorder.take(engine.step())
        step += 1
    recorder.close()


def requests() -> list[Submit]:
    prompts = [[(i * j) % 500 for j in range(3 + 7 * i)] for i in range(8)]
    return [Submit("same-id" if i == 0 else f"id-{i}", ids, PARAMS[i % 4], (5,)) for i, ids in enumerate(prompts)]


def replayed(path: Path, **overrides: Any) -> Comparison:
    run = read_request_log([path])
    config = replay_config(run.header, overrides)
    return Replay(Engine(config, build_fake_runner(config)), run, threading.Event(), max_open=6).run()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "requests.jsonl"
    record(path, requests())
    return path


def changed(log: Path, folder: Path, change: Callable[[list[bytes]], None]) -> Path:
    """A copy of the log with other lines."""
    lines = log.read_bytes().splitlines(keepends=True)
    change(lines)
    copy = folder / "changed.jsonl"
    copy.write_bytes(b"".join(lines))
    return copy


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"max_num_seqs": 1},
        {"max_num_batched_tokens": 5},
        {"enable_prefix_caching": False},
        {"speculation": "ngram"},
        {"preempt_every_steps": 3},
    ],
    ids=str,
)
def test_a_replay_gives_the_recorded_tokens_however_it_is_scheduled(log: Path, overrides: dict[str, Any]):
    comparison = replayed(log, **overrides)
    assert comparison.differences == []
    assert (comparison.num_answers, comparison.num_equal, comparison.num_early) == (12, 12, 0)


def test_the_log_says_what_the_core_got_and_gave(log: Path):
    run = read_request_log([log])
    assert run.header.config == CONFIG
    assert run.header.loaded.dtype == "float32"
    assert {"deepseek-engine", "torch", "python"} <= run.header.software.keys()
    first, several = run.requests[0], run.requests[1]
    assert first.record.submit.params.seed is not None, "the seed that was drawn is there"
    assert first.record.submit.prompt_token_ids == requests()[0].prompt_token_ids
    assert sorted(several.ends) == [0, 1, 2]
    assert several.ends[2].num_prompt_tokens == len(several.record.submit.prompt_token_ids)
    assert run.requests[2].record.submit.params.priority == 2
    assert all(end.step > 0 for request in run.requests.values() for end in request.ends.values())


def test_tenants_are_told_apart_and_not_named(tmp_path: Path):
    salts = ("key-of-alice", "key-of-bob", "key-of-alice", "")
    submits = [Submit(str(i), [1, 2], PARAMS[0], cache_salt=salt) for i, salt in enumerate(salts)]
    record(tmp_path / "log", submits)
    assert b"alice" not in (tmp_path / "log").read_bytes()
    alice, bob, again, nobody = (
        r.record.submit.cache_salt for r in read_request_log([tmp_path / "log"]).requests.values()
    )
    assert alice == again != bob
    assert nobody == ""


def test_an_answer_that_was_ended_early_is_compared_up_to_there(tmp_path: Path):
    def cancel(step: int, engine: Engine) -> None:
        if step == 4:
            engine.inbox.extend((Cancel("id-1", 2), Cancel("id-2"), Cancel("id-4")))

    record(tmp_path / "log", requests(), cancel)
    run = read_request_log([tmp_path / "log"])
    early = [end for r in run.requests.values() for end in r.ends.values() if end.finish_reason == "abort"]
    assert {bool(end.token_ids) for end in early} == {True, False}, "one had begun, one had not"
    comparison = replayed(tmp_path / "log")
    assert comparison.differences == []
    assert (comparison.num_equal, comparison.num_early) == (12, 3)


def test_the_first_token_that_differs_is_named(log: Path, tmp_path: Path):
    def tamper(lines: list[bytes]) -> None:
        index = next(i for i, line in enumerate(lines) if b'"end"' in line and b'"number":2' in line)
        end = msgspec.json.decode(lines[index])
        end["token_ids"][17] = 511 - end["token_ids"][17]
        lines[index] = msgspec.json.encode(end) + b"\n"

    (difference,) = replayed(changed(log, tmp_path, tamper)).differences
    assert difference.startswith("request 2 (id-2): token 17 of 30 was ")


def test_another_prompt_length_and_end_are_differences(log: Path, tmp_path: Path):
    def tamper(lines: list[bytes]) -> None:
        for i, line in enumerate(lines):
            lines[i] = line.replace(b'"max_tokens":30', b'"max_tokens":20')

    differences = replayed(changed(log, tmp_path, tamper)).differences
    assert len(differences) == 2
    assert all(difference.endswith("and is no more (length)") for difference in differences)


def test_a_cut_last_line_is_left_out_and_its_answer_is_not_compared(log: Path, tmp_path: Path):
    def cut(lines: list[bytes]) -> None:
        lines[-1] = lines[-1][: len(lines[-1]) // 2]

    path = changed(log, tmp_path, cut)
    assert read_request_log([path]).is_cut
    comparison = replayed(path)
    assert comparison.differences == []
    assert (comparison.num_equal, comparison.num_without_end) == (11, 1)


def test_a_broken_line_in_the_middle_and_an_end_without_its_request_are_counted(log: Path, tmp_path: Path):
    def spoil(lines: list[bytes]) -> None:
        lines[1] = b'{"type":"request","number":0,"spoilt\n'  # the first request

    run = read_request_log([changed(log, tmp_path, spoil)])
    assert len(run.unreadable) == 1
    assert ":2: " in run.unreadable[0]
    assert (len(run.requests), run.num_orphans) == (7, 1)


class BrokenRunner(FakeRunner):
    def forward(self, batch: Any) -> list[bytes]:
        raise RuntimeError("broken")


def test_an_engine_that_dies_on_the_way_is_a_difference_that_names_what_it_computed(log: Path):
    run = read_request_log([log])
    broken = BrokenRunner(build_fake_runner(CONFIG).info)
    comparison = Replay(Engine(CONFIG, broken), run, threading.Event(), max_open=6).run()
    assert "the engine died" in comparison.differences[-1]
    assert "it was computing request " in comparison.differences[-1]
    assert comparison.num_equal == 0


def test_recorded_times_are_kept_if_asked(log: Path):
    run = read_request_log([log])
    engine = Engine(CONFIG, build_fake_runner(CONFIG))
    assert Replay(engine, run, threading.Event(), timing="recorded").run().num_equal == 12


def test_what_is_not_as_recorded_is_named(log: Path):
    header = read_request_log([log]).header
    config = replay_config(header, {"max_num_seqs": "2"})
    other = msgspec.structs.replace(header, software=header.software | {"torch": "1.0"})
    changes = list(changes_since(other, config, build_fake_runner(config).info))
    assert [change.partition(" and ")[0] for change in changes] == [
        "config: max_num_seqs was 4", "software: torch was 1.0"
    ]  # fmt: skip
    with pytest.raises(RequestLogError, match="'max_seqs' is no setting: choose among"):
        replay_config(header, {"max_seqs": "2"})
    with pytest.raises(RequestLogError, match="do not fit"):
        replay_config(header, {"max_num_seqs": "many"})


def test_files_that_are_no_log_or_of_different_runs_are_refused(log: Path, tmp_path: Path):
    (tmp_path / "other").write_text("{}\n")
    for path, message in (
        (tmp_path / "other", "does not begin with the header"),
        (tmp_path / "absent", "No such file"),
    ):
        with pytest.raises(RequestLogError, match=message):
            read_request_log([path])
    record(tmp_path / "second", requests()[:1])
    with pytest.raises(RequestLogError, match="another run"):
        read_request_log([log, tmp_path / "second"])
