"""The thinking budget: reasoning ends when it is used up, however its tokens come."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import InvalidRequestError
from deepseek_engine.messages import Delta, Submit, ThinkingMarkers
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.fake_runner import build_fake_runner
from deepseek_engine.thinking import ThinkingState

START, END, HALF = 500, 501, 502
PROMPT = [5, 6, 7]
IN_PROMPT = ThinkingMarkers((END,), is_open=True)


def run(markers: ThinkingMarkers | None, budget: int | None, *, model: str = "fake", **params: object) -> list[Delta]:
    config = EngineConfig(
        model=model,
        num_kv_blocks=64,
        max_model_len=256,
        speculation="ngram",
        ngram_min=1,
        num_speculative_tokens=6,
        adaptive_speculation=False,
    )
    engine = Engine(config, build_fake_runner(config))
    fields = {"temperature": 0.0, "max_tokens": 24, "thinking_token_budget": budget} | params
    prompt = [token_id % engine.info.vocab_size for token_id in PROMPT]
    engine.add_request(Submit("a", prompt, SamplingParams(**fields), thinking=markers))
    deltas: list[Delta] = []
    while engine.has_work:
        deltas += engine.step().deltas
    return deltas


def tokens(deltas: list[Delta], index: int = 0) -> list[int]:
    return [token_id for delta in deltas if delta.index == index for token_id in delta.token_ids]


@pytest.mark.parametrize("budget", [0, 1, 5, 20])
def test_the_end_of_reasoning_comes_right_after_the_budget(budget: int) -> None:
    free = tokens(run(IN_PROMPT, None))
    assert END not in free
    limited = run(IN_PROMPT, budget)
    assert tokens(limited)[: budget + 1] == [*free[:budget], END]
    assert len(tokens(limited)) == 24
    assert limited[-1].num_reasoning_tokens == budget


def test_every_answer_has_its_own_budget() -> None:
    deltas = run(IN_PROMPT, 4, n=3, temperature=1.0, seed=1)
    for index in range(3):
        assert tokens(deltas, index).index(END) == 4


def test_a_budget_that_the_answer_does_not_reach_changes_nothing() -> None:
    assert tokens(run(IN_PROMPT, 100)) == tokens(run(IN_PROMPT, None))


def test_an_answer_that_does_not_reason_is_left_alone() -> None:
    closed = ThinkingMarkers((END,), (START,))
    assert tokens(run(closed, 2)) == tokens(run(None, None))


def test_a_guess_never_runs_over_the_end_of_the_budget() -> None:
    for vocabulary in (2, 3):
        model = f"fake?vocab_size={vocabulary}"
        markers = ThinkingMarkers((1, 0, 1), (0, 0))
        for budget in range(12):
            reference = ThinkingState(markers, budget)
            answer = tokens(run(markers, budget, model=model, max_tokens=60))
            for token_id in answer:
                assert reference.forced_token_id in (None, token_id)
                reference.push(token_id)
            assert reference.num_tokens <= budget


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    answer=st.lists(st.integers(0, 2), max_size=30),
    start=st.lists(st.integers(0, 2), max_size=3),
    end=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    is_open=st.booleans(),
)
def test_reasoning_is_what_stands_between_its_markers(
    answer: list[int], start: list[int], end: list[int], is_open: bool
) -> None:
    state = ThinkingState(ThinkingMarkers(tuple(end), tuple(start), is_open))
    for token_id in answer:
        state.push(token_id)

    def find(marker: list[int], begin: int) -> int:
        """The index behind the marker's first occurrence; past the end if there is none."""
        ends = [i for i in range(begin + len(marker), len(answer) + 1) if answer[i - len(marker) : i] == marker]
        return min(ends, default=len(answer) + 1) if marker else len(answer) + 1

    begin = 0 if is_open else find(start, 0)
    finish = find(end, begin)
    assert state.is_closed == (finish <= len(answer))
    assert state.is_open == (begin <= len(answer) < finish)
    if state.is_closed:
        assert state.num_tokens == finish - len(end) - begin


def test_a_begun_end_marker_is_continued_rather_than_begun_anew() -> None:
    state = ThinkingState(ThinkingMarkers((HALF, END), is_open=True), budget=1)
    state.push(7)
    assert state.forced_token_id == HALF
    other = ThinkingState(ThinkingMarkers((HALF, END), is_open=True), budget=1)
    other.push(HALF)
    assert other.forced_token_id == END
    other.push(END)
    assert (other.num_tokens, other.is_closed) == (0, True)


@pytest.mark.parametrize(
    ("markers", "budget", "param"),
    [
        (None, 5, "thinking_token_budget"),
        (IN_PROMPT, -1, "thinking_token_budget"),
        (ThinkingMarkers(()), None, "thinking"),
        (ThinkingMarkers((900,)), None, "thinking"),
    ],
)
def test_a_budget_that_could_not_be_kept_is_refused(
    markers: ThinkingMarkers | None, budget: int | None, param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        run(markers, budget)
    assert caught.value.param == param
