import pytest

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import ContextLengthError, InvalidRequestError
from deepseek_engine.messages import Cancel, Delta, Submit
from deepseek_engine.request import sampling_seed
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.fake_runner import build_fake_runner, expected_tokens


@pytest.fixture(autouse=True, params=["fake", "fake?overlap=1"], ids=["plain", "overlap"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All holds for both kinds of runner; a test of what happens within one step names its model."""
    monkeypatch.setattr(f"{__name__}.MODEL", request.param)


MODEL = "fake"


def make_engine(model: str | None = None, **settings: int | bool) -> Engine:
    config = EngineConfig(model=model or MODEL, **({"num_kv_blocks": 64, "max_model_len": 256} | settings))
    return Engine(config, build_fake_runner(config))


def submit(request_id: str, prompt: list[int], *, eos: tuple[int, ...] = (), **params: object) -> Submit:
    return Submit(
        request_id, prompt, SamplingParams(**({"temperature": 0.0, "max_tokens": 16} | params)), eos_token_ids=eos
    )


def run(engine: Engine) -> list[Delta]:
    deltas: list[Delta] = []
    while engine.has_work:
        deltas += engine.step().deltas
    assert engine._scheduler.allocator.num_free == engine.info.num_blocks
    return deltas


def answer(deltas: list[Delta], request_id: str, index: int = 0) -> tuple[list[int], Delta]:
    own = [delta for delta in deltas if (delta.request_id, delta.index) == (request_id, index)]
    assert [delta.finish_reason for delta in own[:-1]] == [None] * (len(own) - 1)
    return [token_id for delta in own for token_id in delta.token_ids], own[-1]


PROMPT = [5, 6, 7, 8, 9]


def test_a_request_ends_at_max_tokens_with_one_token_a_step():
    engine = make_engine()
    engine.add_request(submit("a", PROMPT, max_tokens=8))
    deltas = run(engine)
    token_ids, last = answer(deltas, "a")
    assert token_ids == expected_tokens(PROMPT, 8)
    assert (last.finish_reason, last.stop_token_id, last.num_prompt_tokens) == ("length", None, 5)
    assert len(deltas) == 8


def test_without_max_tokens_an_answer_ends_where_the_context_does():
    engine = make_engine(max_model_len=20)
    engine.add_request(submit("a", PROMPT, max_tokens=None))
    token_ids, last = answer(run(engine), "a")
    assert (len(token_ids), last.finish_reason) == (15, "length")


@pytest.mark.parametrize("by", ["eos", "stop_token_ids"])
def test_a_stop_token_ends_the_answer_and_is_its_last_token(by: str):
    expected = expected_tokens(PROMPT, 8)
    engine = make_engine()
    stops = {"eos": (expected[4],)} if by == "eos" else {"stop_token_ids": (expected[4],)}
    engine.add_request(submit("a", PROMPT, max_tokens=8, **stops))
    token_ids, last = answer(run(engine), "a")
    assert token_ids == expected[:5]
    assert (last.finish_reason, last.stop_token_id) == ("stop", expected[4])


def test_ignore_eos_goes_on_after_it():
    expected = expected_tokens(PROMPT, 8)
    engine = make_engine()
    engine.add_request(submit("a", PROMPT, max_tokens=8, eos=(expected[4],), ignore_eos=True))
    assert answer(run(engine), "a")[0] == expected


@pytest.mark.parametrize(("min_tokens", "num_tokens"), [(4, 5), (5, 8)])
def test_a_stop_token_counts_only_after_min_tokens(min_tokens: int, num_tokens: int):
    expected = expected_tokens(PROMPT, 8)
    assert expected.index(expected[4]) == 4
    engine = make_engine()
    engine.add_request(submit("a", PROMPT, max_tokens=8, eos=(expected[4],), min_tokens=min_tokens))
    assert answer(run(engine), "a")[0] == expected[:num_tokens]


def test_a_stop_token_in_the_last_place_is_a_stop():
    expected = expected_tokens(PROMPT, 5)
    engine = make_engine()
    engine.add_request(submit("a", PROMPT, max_tokens=5, eos=(expected[4],)))
    assert answer(run(engine), "a")[1].finish_reason == "stop"


def test_logprobs_come_with_the_tokens_when_asked_for():
    engine = make_engine()
    engine.add_request(submit("with", PROMPT, max_tokens=2, logprobs=0))
    engine.add_request(submit("without", PROMPT, max_tokens=2))
    for delta in run(engine):
        if delta.request_id == "with":
            assert delta.logprobs is not None
            assert [entry.logprob for entry in delta.logprobs] == [-float(delta.token_ids[0])]
        else:
            assert delta.logprobs is None


def test_answers_of_one_request_differ_by_a_seed_that_follows_from_the_requests():
    engine = make_engine()
    engine.add_request(submit("a", PROMPT, n=3, seed=7, temperature=1.0, max_tokens=6))
    deltas = run(engine)
    answers = [answer(deltas, "a", index)[0] for index in range(3)]
    assert answers == [expected_tokens(PROMPT, 6, seed=sampling_seed(7, index)) for index in range(3)]
    assert len({tuple(token_ids) for token_ids in answers}) == 3


def test_without_a_seed_answers_are_new_each_time():
    answers = []
    for _ in range(2):
        engine = make_engine()
        engine.add_request(submit("a", PROMPT, temperature=1.0, max_tokens=6))
        answers.append(answer(run(engine), "a")[0])
    assert answers[0] != answers[1]


def test_seeds_of_answers_fit_a_signed_64_bit_integer():
    seeds = {sampling_seed(seed, index) for seed in (-(2**63), -1, 0, 1, 2**64 - 1) for index in range(64)}
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(seeds) == 4 * 64  # -1 and 2**64 - 1 are the same 64 bits


def test_the_prompt_is_counted_once_however_many_answers_it_has():
    engine = make_engine("fake", max_num_batched_tokens=32)
    prompt = list(range(40))
    engine.add_request(submit("a", prompt, n=4, max_tokens=2))
    computed = 0
    while engine.has_work:
        before = engine._num_steps
        deltas = engine.step().deltas
        computed += engine._num_steps - before
        assert {delta.num_prompt_tokens for delta in deltas} <= {40}
    # Two steps for the prompt; the other answers then share 32 of its tokens and compute 8 each.
    assert computed == 4


def test_cached_prompt_tokens_are_reported():
    engine = make_engine()
    prompt = list(range(40))
    engine.add_request(submit("first", prompt, max_tokens=2))
    assert answer(run(engine), "first")[1].num_cached_tokens == 0
    engine.add_request(submit("second", prompt, max_tokens=2))
    assert answer(run(engine), "second")[1].num_cached_tokens == 32
    engine.add_request(Submit("salted", prompt, SamplingParams(max_tokens=2), cache_salt="other"))
    assert answer(run(engine), "salted")[1].num_cached_tokens == 0


def test_prefix_caching_can_be_off():
    engine = make_engine(enable_prefix_caching=False)
    for request_id in ("first", "second"):
        engine.add_request(submit(request_id, list(range(40)), max_tokens=2))
        assert answer(run(engine), request_id)[1].num_cached_tokens == 0


def test_recomputing_after_preemption_is_not_counted_as_cached():
    engine = make_engine(num_kv_blocks=5, max_model_len=80)
    engine.add_request(submit("old", list(range(30)), max_tokens=20))
    engine.add_request(submit("new", list(range(100, 130)), max_tokens=20))
    deltas = run(engine)
    assert engine._scheduler.num_preemptions > 0
    for request_id, prompt in (("old", list(range(30))), ("new", list(range(100, 130)))):
        token_ids, last = answer(deltas, request_id)
        assert token_ids == expected_tokens(prompt, 20)
        assert (last.num_prompt_tokens, last.num_cached_tokens) == (30, 0)


def test_a_request_cancelled_before_it_started_has_processed_nothing():
    engine = make_engine(max_num_seqs=1)
    engine.add_request(submit("running", PROMPT, max_tokens=50))
    engine.add_request(submit("waiting", PROMPT, n=2, max_tokens=50))
    engine.step()
    engine.cancel("waiting")
    deltas = engine.step().deltas
    aborted = [(d.index, d.finish_reason, d.num_prompt_tokens) for d in deltas if d.request_id == "waiting"]
    assert sorted(aborted) == [(0, "abort", 0), (1, "abort", 0)]
    engine.cancel("running")
    run(engine)


def test_a_cancelled_prefill_reports_the_tokens_it_has_processed():
    engine = make_engine("fake", max_num_batched_tokens=32)
    engine.add_request(submit("a", list(range(100)), max_tokens=5))
    engine.step()
    engine.step()
    engine.cancel("a")
    (delta,) = run(engine)
    assert (delta.finish_reason, delta.num_prompt_tokens, delta.token_ids) == ("abort", 64, ())


def test_a_cancel_frees_blocks_within_the_step():
    engine = make_engine()
    engine.add_request(submit("a", PROMPT, max_tokens=50))
    engine.step()
    engine.inbox.append(Cancel("a"))
    outputs = engine.step()
    assert outputs.stats.num_free_blocks == outputs.stats.num_blocks
    assert not engine.has_work


def test_a_cancel_that_arrives_while_a_step_computes_goes_before_its_tokens():
    engine = make_engine("fake")
    forward = engine._runner.forward

    def forward_while_a_cancel_arrives(batch):
        engine.inbox.append(Cancel("a"))
        return forward(batch)

    engine._runner.forward = forward_while_a_cancel_arrives
    engine.add_request(submit("a", PROMPT, max_tokens=50))
    outputs = engine.step()
    (delta,) = outputs.deltas
    # The work is counted, the token is not given out.
    assert (delta.finish_reason, delta.token_ids, delta.num_prompt_tokens) == ("abort", (), 5)
    assert outputs.stats.num_free_blocks == outputs.stats.num_blocks


def test_one_answer_can_be_cancelled_alone():
    engine = make_engine()
    engine.add_request(submit("a", PROMPT, n=3, max_tokens=6))
    engine.step()
    engine.cancel("a", 0)
    engine.cancel("a", 0)
    deltas = run(engine)
    assert [answer(deltas, "a", index)[1].finish_reason for index in range(3)] == ["abort", "length", "length"]


def test_a_cancel_of_an_unknown_or_ended_request_does_nothing():
    engine = make_engine()
    engine.add_request(submit("a", PROMPT, max_tokens=1))
    run(engine)
    engine.cancel("a")
    engine.cancel("never", 3)
    assert engine.step().deltas == ()


def test_requests_end_when_their_time_is_up_whether_they_run_or_wait():
    now = 100.0
    config = EngineConfig(model="fake", num_kv_blocks=64, max_model_len=256, max_num_seqs=1)
    engine = Engine(config, build_fake_runner(config), clock=lambda: now)
    engine.add_request(submit("runs", PROMPT, max_tokens=50, deadline_s=5.0))
    engine.add_request(submit("waits", PROMPT, n=2, max_tokens=50, deadline_s=2.0))
    engine.add_request(submit("in time", PROMPT, max_tokens=2, deadline_s=7.0))
    now = 101.9
    assert {delta.request_id for delta in engine.step().deltas} == {"runs"}
    now = 102.0
    ends = [(d.request_id, d.finish_reason, d.timed_out) for d in engine.step().deltas if d.finish_reason]
    assert ends == [("waits", "abort", True)] * 2
    now = 105.0
    (end,) = [delta for delta in engine.step().deltas if delta.finish_reason]
    assert (end.request_id, end.timed_out, end.num_prompt_tokens) == ("runs", True, 5)
    assert answer(run(engine), "in time")[1].finish_reason == "length"


def test_a_deadline_that_passes_while_a_step_computes_goes_before_its_tokens():
    now = 0.0
    config = EngineConfig(model="fake", num_kv_blocks=64, max_model_len=256)
    engine = Engine(config, build_fake_runner(config), clock=lambda: now)
    forward = engine._runner.forward

    def slow_forward(batch):
        nonlocal now
        now += 10.0
        return forward(batch)

    engine._runner.forward = slow_forward
    engine.add_request(submit("a", PROMPT, max_tokens=50, deadline_s=5.0))
    (delta,) = engine.step().deltas
    assert (delta.finish_reason, delta.timed_out, delta.token_ids) == ("abort", True, ())


def test_priorities_reach_the_scheduler():
    engine = make_engine(max_num_seqs=1)
    for request_id, priority in (("a", 1), ("b", 0), ("c", -1)):
        engine.add_request(submit(request_id, PROMPT, max_tokens=1, priority=priority))
    assert [delta.request_id for delta in run(engine)] == ["c", "b", "a"]


def test_a_request_that_exceeds_the_context_is_refused_with_what_would_fit():
    engine = make_engine(max_model_len=8192, num_kv_blocks=512)
    message = r"prompt has 9000 tokens, max_tokens=512: the context is 8192 tokens, so at most 7680 prompt tokens fit"
    with pytest.raises(ContextLengthError, match=message):
        engine.add_request(submit("a", [1] * 9000, max_tokens=512))
    with pytest.raises(ContextLengthError, match="max_tokens can be at most 8187") as caught:
        engine.add_request(submit("a", PROMPT, max_tokens=9000))
    assert caught.value.param == "max_tokens"
    with pytest.raises(ContextLengthError, match="at most 8191 prompt tokens fit"):
        engine.add_request(submit("a", [1] * 8192, max_tokens=None))
    engine.add_request(submit("exact", [1] * 7680, max_tokens=512))
    engine.cancel("exact")
    run(engine)


def test_a_request_that_the_cache_could_never_hold_is_refused_rather_than_left_waiting():
    engine = make_engine(num_kv_blocks=4)
    with pytest.raises(ContextLengthError, match="the KV cache is 64 tokens, so at most 44 prompt tokens fit"):
        engine.add_request(submit("a", [1] * 50, max_tokens=20))


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([], {}, "prompt"),
        ([1, 512], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1], {"stop_token_ids": (512,)}, "stop_token_ids"),
        ([1], {"logit_bias": {512: 1.0}}, "logit_bias"),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused(prompt: list[int], params: dict[str, object], param: str):
    with pytest.raises(InvalidRequestError) as caught:
        make_engine().add_request(submit("a", prompt, **params))
    assert caught.value.param == param


def test_an_id_in_use_is_refused_and_free_again_afterwards():
    engine = make_engine()
    engine.add_request(submit("a", PROMPT, max_tokens=2))
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        engine.add_request(submit("a", PROMPT))
    run(engine)
    engine.add_request(submit("a", PROMPT, max_tokens=2))
    assert answer(run(engine), "a")[1].finish_reason == "length"


def test_a_bad_request_from_the_inbox_ends_each_of_its_answers_with_the_reason():
    engine = make_engine()
    engine.inbox.append(submit("a", [], n=2))
    deltas = run(engine)
    assert [(d.index, d.finish_reason, d.error) for d in deltas] == [
        (index, "error", "the prompt has no tokens: at least one is needed") for index in range(2)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 4, "max_num_seqs": 4},
        {"num_kv_blocks": 10, "max_model_len": 100},
        {"enable_prefix_caching": False},
        {"preempt_every_steps": 2},
        {},
    ],
    ids=["chunked", "preempted", "uncached", "preempted on purpose", "plain"],
)
def test_a_prompt_gets_the_same_tokens_alone_and_in_any_company(settings: dict[str, int]):
    engine = make_engine(**settings)
    prompts = [[*range(33), index] for index in range(16)]
    for index, prompt in enumerate(prompts):
        engine.add_request(submit(str(index), prompt, max_tokens=40))
    deltas = run(engine)
    for index, prompt in enumerate(prompts):
        assert answer(deltas, str(index))[0] == expected_tokens(prompt, 40)
    if "num_kv_blocks" in settings or "preempt_every_steps" in settings:
        assert engine._scheduler.num_preemptions > 0
