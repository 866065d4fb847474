"""The sampler against brute force: which tokens may come, how often, and the same ones for the same seed."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_engine.sampler import Sampler, uniform
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import Sequence

VOCAB = 600


def logits(seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3


def draw(row: torch.Tensor, params: SamplingParams, count: int, prompt: list[int] | None = None) -> list[int]:
    """`count` tokens for the same logits, one a position, as a sequence would draw them."""
    sampler = Sampler(row.shape[0])
    sequence = Sequence("r", 0, list(prompt or [0]), params, sampling_seed=params.seed or 0)
    if not params.penalises_tokens:
        rows = row.repeat(count, 1)
        return [token.token_id for token in sampler.sample(rows, [sequence] * count, range(count))]
    for _ in range(count):
        sequence.token_ids.append(sampler.sample(row.clone()[None], [sequence])[0].token_id)
    return sequence.token_ids[sequence.num_prompt_tokens :]


def kept_by_definition(row: torch.Tensor, params: SamplingParams) -> set[int]:
    """Top-k, then the smallest nucleus of top-p, then min-p, each over what the one before left."""
    probs = torch.softmax(row.double() / params.temperature, -1)
    order = sorted(range(len(row)), key=lambda i: -probs[i].item())
    if params.top_k > 0:
        order = order[: params.top_k]
    total = math.fsum(probs[i].item() for i in order)
    nucleus, mass = [], 0.0
    for token in order:
        if mass >= params.top_p * total:
            break
        nucleus.append(token)
        mass += probs[token].item()
    floor = params.min_p * probs[order[0]].item()
    return {token for token in nucleus if probs[token].item() >= floor}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=7),
        SamplingParams(top_p=0.6),
        SamplingParams(min_p=0.05),
        SamplingParams(top_k=40, top_p=0.8, min_p=0.01),
        SamplingParams(top_p=0.9999, temperature=2.0),
        SamplingParams(min_p=1e-6, temperature=2.0),
        SamplingParams(top_k=500, temperature=1.5),
    ],
    ids=["top_k", "top_p", "min_p", "all", "nucleus-past-the-candidates", "min_p-past-the-candidates", "large-top_k"],
)
def test_filters_keep_exactly_the_tokens_of_their_definition(params: SamplingParams) -> None:
    row = logits()
    allowed = kept_by_definition(row, params)
    seen = set(draw(row, params, 3000))
    assert seen <= allowed
    likely = {i for i in allowed if torch.softmax(row / params.temperature, -1)[i] > 0.01}
    assert likely <= seen


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_k=5), SamplingParams(temperature=0.5)])
def test_frequencies_follow_the_distribution(params: SamplingParams) -> None:
    row = logits(seed=3, vocab=12)
    allowed = kept_by_definition(row, params)
    weights = torch.softmax(row.double() / params.temperature, -1)
    expected = {i: weights[i].item() / math.fsum(weights[j].item() for j in allowed) for i in allowed}
    count = 20_000
    counts = Counter(draw(row, params, count))
    chi_square = sum((counts[i] - count * p) ** 2 / (count * p) for i, p in expected.items())
    assert (
        chi_square < 40
    )  # 11 degrees of freedom: p < 0.0001 for a fair sampler, and the draws are the same every time


def test_temperature_zero_takes_the_likeliest_and_the_lower_id_on_a_tie() -> None:
    row = torch.zeros(VOCAB)
    row[[17, 400]] = 2.0
    assert draw(row, SamplingParams(temperature=0.0), 3) == [17, 17, 17]


def test_a_repetition_penalty_counts_the_prompt_and_the_answer() -> None:
    row = torch.full((VOCAB,), -9.0)
    row[5], row[6], row[7] = 4.0, 3.0, -1.0
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0)
    assert draw(row, params, 2, prompt=[1]) == [5, 6]
    assert draw(row, params, 2, prompt=[5]) == [6, 5]
    row[6] = -0.4  # a penalised negative logit moves further down
    assert draw(row, params, 3, prompt=[6]) == [5, 5, 5]


def test_presence_is_subtracted_once_and_frequency_each_time() -> None:
    row = torch.full((VOCAB,), -9.0)
    row[5], row[6] = 4.0, 2.5
    assert draw(row, SamplingParams(temperature=0.0, presence_penalty=1.0), 4) == [5, 5, 5, 5]
    assert draw(row, SamplingParams(temperature=0.0, presence_penalty=2.0), 4) == [5, 6, 5, 5]
    assert draw(row, SamplingParams(temperature=0.0, frequency_penalty=1.0), 4) == [5, 5, 6, 5]
    assert draw(row, SamplingParams(temperature=0.0, frequency_penalty=2.0), 2, prompt=[5]) == [5, 6]


def test_logit_bias_can_force_and_forbid_tokens() -> None:
    row = logits()
    best = int(row.argmax())
    assert draw(row, SamplingParams(temperature=0.0, logit_bias={best: -100.0}), 1) != [best]
    assert draw(row, SamplingParams(temperature=1.0, logit_bias={9: 100.0}), 20) == [9] * 20


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63), position=st.integers(0, 10_000), others=st.integers(0, 5))
def test_a_seeded_token_does_not_depend_on_the_rest_of_the_batch(seed: int, position: int, others: int) -> None:
    params = SamplingParams(temperature=1.2, top_p=0.9)

    def sequence_at(sampling_seed: int) -> Sequence:
        sequence = Sequence("r", 0, [1], params, sampling_seed=sampling_seed)
        sequence.token_ids += [2] * position
        return sequence

    alone = Sampler(VOCAB).sample(logits()[None], [sequence_at(seed)])[0].token_id
    rows = torch.stack([logits(i + 1) for i in range(others)] + [logits()])
    batch = [sequence_at(seed + i + 1) for i in range(others)] + [sequence_at(seed)]
    assert Sampler(VOCAB).sample(rows, batch)[-1].token_id == alone


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = [number for seed in range(100) for number in uniform([seed] * 100, range(100))]
    assert all(0.0 <= number < 1.0 for number in numbers)
    buckets = Counter(int(number * 20) for number in numbers)
    assert all(400 < buckets[i] < 600 for i in range(20))
