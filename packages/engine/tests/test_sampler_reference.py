"""The sampler, which works on whole batches, against one row at a time in plain Python."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_engine.sampler import Sampler, uniform
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import Sequence

VOCAB = 700
STOPS = frozenset({1, 2})


def adjusted(logits: list[float], sequence: Sequence) -> list[float]:
    """Penalties, bias and min_tokens by their definitions."""
    params = sequence.params
    answer = sequence.token_ids[sequence.num_prompt_tokens :]
    values = list(logits)
    for token in set(sequence.token_ids):
        values[token] = values[token] / params.repetition_penalty if values[token] > 0 else (
            values[token] * params.repetition_penalty
        )  # fmt: skip
    for token in set(answer):
        values[token] -= params.frequency_penalty * answer.count(token) + params.presence_penalty
    for token, bias in (params.logit_bias or {}).items():
        values[token] += bias
    if len(answer) < params.min_tokens:
        for token in STOPS:
            values[token] = -math.inf
    return values


def chosen(values: list[float], sequence: Sequence) -> int:
    """The likeliest token, or the one whose share of the kept probabilities holds the sequence's number."""
    params = sequence.params
    order = sorted(range(VOCAB), key=lambda token: -values[token])
    if params.is_greedy:
        return order[0]
    top = values[order[0]]
    weights = {token: math.exp((values[token] - top) / params.temperature) for token in range(VOCAB)}
    if params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0:
        kept = order[: params.top_k] if params.top_k > 0 else order
        total, mass, nucleus = sum(weights[token] for token in kept), 0.0, []
        for token in kept:
            if mass >= params.top_p * total:
                break
            nucleus.append(token)
            mass += weights[token]
        kept = [token for token in nucleus if weights[token] >= params.min_p]
    else:
        kept = list(range(VOCAB))
    target = uniform([sequence.sampling_seed], [sequence.num_output_tokens])[0] * sum(weights[token] for token in kept)
    for token in kept:
        target -= weights[token]
        if target < 0:
            return token
    return kept[-1]


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 0.3, 1.0, 2.0)),
    top_p=st.sampled_from((1.0, 0.999, 0.8, 0.1)),
    top_k=st.sampled_from((0, 0, 1, 7, 300, 699)),
    min_p=st.sampled_from((0.0, 0.0, 1e-4, 0.2)),
    repetition_penalty=st.sampled_from((1.0, 1.0, 0.8, 1.7)),
    presence_penalty=st.sampled_from((0.0, 0.0, 0.7, -1.0)),
    frequency_penalty=st.sampled_from((0.0, 0.0, 0.4)),
    logit_bias=st.sampled_from((None, {5: 4.0, 6: -100.0, 699: 2.5})),
    min_tokens=st.sampled_from((0, 4)),
    logprobs=st.sampled_from((None, 0, 3)),
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.lists(st.tuples(params_strategy, st.integers(0, 2**63 - 1), st.integers(1, 40)), min_size=1, max_size=9),
    logits_seed=st.integers(0, 10_000),
)
def test_every_row_of_a_mixed_batch_gets_the_token_of_the_slow_reference(
    batch: list[tuple[SamplingParams, int, int]], logits_seed: int
) -> None:
    generator = torch.Generator().manual_seed(logits_seed)
    sampler = Sampler(VOCAB)
    sequences = [
        Sequence("r", row, [(row + 11 * i) % VOCAB for i in range(length)], params, seed, stop_token_ids=STOPS)
        for row, (params, seed, length) in enumerate(batch)
    ]
    for _ in range(7):
        logits = torch.randn(len(batch), VOCAB, generator=generator) * 3
        expected = [
            chosen(adjusted(row, sequence), sequence)
            for row, sequence in zip(logits.double().tolist(), sequences, strict=True)
        ]
        unmodified = logits.log_softmax(-1)
        sampled = sampler.sample(logits.clone(), sequences)
        assert [token.token_id for token in sampled] == expected
        for row, (sequence, token) in enumerate(zip(sequences, sampled, strict=True)):
            wanted = sequence.params.logprobs
            if wanted is None:
                assert token.logprobs is None
            else:
                assert token.logprobs is not None
                assert token.logprobs.logprob == unmodified[row, token.token_id]
                assert [top.token_id for top in token.logprobs.top] == unmodified[row].topk(wanted).indices.tolist()
            sequence.token_ids.append(token.token_id)


def test_a_draw_never_takes_a_token_of_no_probability() -> None:
    row = torch.full((VOCAB,), -math.inf)
    row[[3, 300, 650]] = torch.tensor([0.0, -30.0, 0.5])
    sequence = Sequence("r", 0, [0], SamplingParams(), sampling_seed=9)
    tokens = Sampler(VOCAB).sample(row.repeat(2000, 1), [sequence] * 2000, range(2000))
    assert {token.token_id for token in tokens} == {3, 650}


def test_a_row_behind_draft_tokens_draws_as_if_they_were_in_the_sequence() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(4))
    params = SamplingParams(top_p=0.9, min_tokens=2)
    behind = Sequence("r", 0, [5], params, sampling_seed=77, stop_token_ids=STOPS)
    ahead = Sampler(VOCAB).sample(logits.clone(), [behind] * 3, [0, 1, 2])
    for row in range(3):
        alone = Sampler(VOCAB).sample(logits[row : row + 1].clone(), [behind])[0]
        assert alone == ahead[row]
        behind.token_ids.append(9)
