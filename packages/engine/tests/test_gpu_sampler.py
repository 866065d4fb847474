"""The GPU's sampler against the CPU's: the same tokens, in Triton's interpreter, or on a device if there is one.

Where a number lies within 1e-6 of the boundary between two tokens, float32 rounding may give the other one; the draws
here are the same every time, and on small vocabularies none of them lies there.
"""

import gc
from collections.abc import Sequence as Seq

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from deepseek_engine.gpu_sampler import GpuSampler
from deepseek_engine.kernels.reference import sampling as reference
from deepseek_engine.kernels.sampling_rows import Needs, SamplingConfig, scratch_bytes
from deepseek_engine.messages import ThinkingMarkers
from deepseek_engine.sampler import Sampler, uniform
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import SampledToken, Sequence
from deepseek_engine.thinking import ThinkingState

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 299
STOPS = frozenset({1, 2})
SMALL = SamplingConfig(block=128, group=2, candidates=8, capacity=32, tile=256)
"""So that a vocabulary of a few hundred has blocks, groups, and rows that candidates do not decide."""


def sampler(max_rows: int = 6, vocab: int = VOCAB) -> GpuSampler:
    return GpuSampler(vocab, max_rows, DEVICE, SMALL)


def choose(
    gpu: GpuSampler, logits: torch.Tensor, sequences: Seq[Sequence], offsets: Seq[int] | None = None
) -> list[SampledToken]:
    out = torch.full((len(sequences),), -1, dtype=torch.int64, device=DEVICE)
    gpu.prepare(sequences, offsets)
    gpu.sample(logits.to(DEVICE), out)
    gpu.send()
    tokens = gpu.collect()
    assert out.tolist() == [token.token_id for token in tokens]
    return tokens


def mask_of(allowed: Seq[int], vocab: int = VOCAB) -> np.ndarray:
    bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def assert_same(ours: Seq[SampledToken], theirs: Seq[SampledToken]) -> None:
    assert [token.token_id for token in ours] == [token.token_id for token in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert (our.logprobs is None) == (their.logprobs is None)
        if our.logprobs is not None and their.logprobs is not None:
            assert our.logprobs.logprob == pytest.approx(their.logprobs.logprob, abs=1e-5)
            assert [top.token_id for top in our.logprobs.top] == [top.token_id for top in their.logprobs.top]
            ours_top, theirs_top = ([top.logprob for top in each.top] for each in (our.logprobs, their.logprobs))
            assert ours_top == pytest.approx(theirs_top, abs=1e-5)


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 0.3, 1.0, 2.0)),
    top_p=st.sampled_from((1.0, 1.0, 0.999, 0.8, 0.1)),
    top_k=st.sampled_from((0, 0, 1, 7, 30, 200, 298, 10_000)),
    min_p=st.sampled_from((0.0, 0.0, 1e-4, 0.2)),
    repetition_penalty=st.sampled_from((1.0, 1.0, 0.8, 1.7)),
    presence_penalty=st.sampled_from((0.0, 0.0, 0.7, -1.0)),
    frequency_penalty=st.sampled_from((0.0, 0.0, 0.4)),
    logit_bias=st.sampled_from((None, None, {5: 4.0, 6: -100.0, 298: 2.5})),
    min_tokens=st.sampled_from((0, 3)),
    logprobs=st.sampled_from((None, None, 0, 3)),
)
batches = st.lists(
    st.tuples(params_strategy, st.integers(0, 2**63 - 1), st.integers(1, 40), st.booleans()), min_size=2, max_size=3
)


@pytest.mark.parametrize("use_reference", [False, True], ids=["kernels", "reference"])
@settings(max_examples=4 if DEVICE.type == "cpu" else 100, deadline=None, derandomize=True, phases=[Phase.generate])
@given(batch=batches, logits_seed=st.integers(0, 10_000), spread=st.sampled_from((0.3, 3.0)))
def test_a_mixed_batch_gets_the_tokens_of_the_cpu_sampler(
    use_reference: bool, batch: list[tuple[SamplingParams, int, int, bool]], logits_seed: int, spread: float
) -> None:
    if use_reference and DEVICE.type == "cuda":
        pytest.skip("the plain twins are for the CPU")
    generator = torch.Generator().manual_seed(logits_seed)
    ours, theirs = sampler(), Sampler(VOCAB)
    if use_reference:
        ours.set_kernels(reference.choose_tokens)
    sequences = [
        Sequence("r", row, [(row + 11 * i) % VOCAB for i in range(length)], params, seed, stop_token_ids=STOPS)
        for row, (params, seed, length, _) in enumerate(batch)
    ]
    for _ in range(2):
        logits = torch.randn(len(batch), VOCAB, generator=generator) * spread
        for sequence, (*_, is_masked) in zip(sequences, batch, strict=True):
            allowed = torch.randperm(VOCAB, generator=generator)[:100].tolist()
            sequence.token_mask = mask_of(allowed) if is_masked else None
        expected = theirs.sample(logits.clone(), sequences)
        assert_same(choose(ours, logits, sequences), expected)
        for sequence, token in zip(sequences, expected, strict=True):
            sequence.append(token.token_id)


def sequence(params: SamplingParams, seed: int = 7, prompt: Seq[int] = (3, 4)) -> Sequence:
    return Sequence("r", 0, list(prompt), params, seed, stop_token_ids=STOPS)


def random_logits(rows: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=200, top_p=0.9, min_p=1e-3),
        SamplingParams(top_p=0.97),
        SamplingParams(min_p=0.02, temperature=1.5),
    ],
    ids=["all", "top_p", "min_p"],
)
def test_rows_that_candidates_do_not_decide_walk_through_all_tokens(params: SamplingParams) -> None:
    ours, logits = sampler(), random_logits(1, spread=0.4).repeat(2, 1)
    rows = [sequence(params, seed) for seed in (7, 11)]
    expected = Sampler(VOCAB).sample(logits.clone(), rows)
    assert_same(choose(ours, logits, rows), expected)
    assert ours._scratch.is_undecided[:2].tolist() == [[1], [1]]


@pytest.mark.parametrize("top_k", [0, 9, 100], ids=["top_p", "few", "many"])
def test_among_equal_logits_the_lower_ids_are_kept_and_come_first(top_k: int) -> None:
    """As bfloat16 logits are; the CPU's sampler leaves their order open, so the definition is the oracle."""
    logits = (random_logits(1, spread=1.0) * 2).round() / 2
    params = SamplingParams(top_k=top_k, top_p=0.8)
    rows = [sequence(params, seed) for seed in (1, 2)]
    ours, oracle = sampler(), sampler()
    oracle.set_kernels(reference.choose_tokens)
    oracle_logits = logits.repeat(2, 1)
    if DEVICE.type == "cuda":
        pytest.skip("the plain twins are for the CPU")
    assert choose(ours, oracle_logits, rows) == choose(oracle, oracle_logits, rows)
    flat = torch.zeros(1, VOCAB)
    assert choose(ours, flat, rows[:1]) == choose(oracle, flat, rows[:1])


def test_penalties_count_tokens_that_the_host_has_not_seen() -> None:
    """Two steps are under way at once, as the engine overlaps them: the second is prepared before the first is read."""
    logits = torch.full((1, VOCAB), -9.0)
    logits[0, 5], logits[0, 6], logits[0, 7] = 4.0, 3.5, 3.0
    ours, asks = sampler(), sequence(SamplingParams(temperature=0.0, presence_penalty=2.0))
    out = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    seen: list[int] = []
    for step in range(4):
        ours.prepare([asks], [min(step, 1)])
        ours.sample(logits.to(DEVICE), out)
        ours.send()
        if step:
            asks.append(ours.collect()[0].token_id)
            seen.append(asks.token_ids[-1])
    seen.append(ours.collect()[0].token_id)
    assert seen == [5, 6, 7, 5]


def test_a_step_that_is_computed_again_counts_its_token_once() -> None:
    logits = torch.full((1, VOCAB), -9.0)
    logits[0, 5], logits[0, 6] = 4.0, 2.5
    ours, asks = sampler(), sequence(SamplingParams(temperature=0.0, frequency_penalty=1.0))
    assert [choose(ours, logits, [asks])[0].token_id for _ in range(4)] == [5] * 4  # discarded, as after a failure
    for expected in (5, 5, 6):
        asks.append(choose(ours, logits, [asks])[0].token_id)
        assert asks.token_ids[-1] == expected


def test_counts_come_back_when_a_sequence_returns_for_its_slot() -> None:
    logits = torch.full((1, VOCAB), -9.0)
    logits[0, 5], logits[0, 6] = 4.0, 2.5
    ours = sampler(max_rows=1)
    params = SamplingParams(temperature=0.0, presence_penalty=2.0, repetition_penalty=1.01)
    first, second = sequence(params), sequence(params)
    for each, expected in ((first, 5), (second, 5), (first, 6), (second, 6)):
        each.append(choose(ours, logits, [each])[0].token_id)
        assert each.token_ids[-1] == expected
    assert ours._counts.num_bytes <= ours._counts.max_bytes
    del first, each
    gc.collect()
    third = sequence(params)
    assert choose(ours, logits, [third])[0].token_id == 5


def test_a_row_behind_tokens_under_way_draws_at_its_own_position() -> None:
    logits, behind = random_logits(3), sequence(SamplingParams(min_tokens=2))
    expected = Sampler(VOCAB).sample(logits.clone(), [behind] * 3, [0, 1, 2])
    assert_same(choose(sampler(), logits, [behind] * 3, [0, 1, 2]), expected)


def test_seeds_of_64_bits_and_late_positions_give_the_numbers_of_the_cpu() -> None:
    """Of 299 equal tokens the one that is drawn tells the number to a third of a hundredth."""
    logits = torch.zeros(6, VOCAB)
    seeds = (0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15)
    rows = [sequence(SamplingParams(), seed) for seed in seeds]
    offsets = [0, 1, 131071, 2**31, 5, 2**40]
    expected = Sampler(VOCAB).sample(logits.clone(), rows, offsets)
    assert_same(choose(sampler(), logits, rows, offsets), expected)


def test_a_forced_token_comes_whatever_the_logits_and_is_counted() -> None:
    ours = sampler()
    asks = sequence(SamplingParams(temperature=0.0, presence_penalty=2.0, logprobs=1))
    asks.thinking = ThinkingState(ThinkingMarkers(end_token_ids=(9,), is_open=True), budget=0)
    logits = torch.full((1, VOCAB), -9.0)
    logits[0, 9], logits[0, 5] = -8.0, -8.5
    token = choose(ours, logits, [asks])[0]
    assert token.token_id == 9
    assert token.logprobs is not None
    assert token.logprobs.logprob == pytest.approx(logits.log_softmax(-1)[0, 9].item(), abs=1e-5)
    asks.append(9)
    assert choose(ours, logits, [asks])[0].token_id == 5


def test_padded_bfloat16_logits_are_read_where_they_lie_and_rows_behind_the_batch_are_harmless() -> None:
    logits = torch.full((4, VOCAB + 21), 100.0, dtype=torch.bfloat16)
    logits[:, :VOCAB] = random_logits(4).bfloat16()
    rows = [sequence(SamplingParams(logit_bias={8: 0.3}), 3), sequence(SamplingParams(temperature=0.0))]
    ours, out = sampler(), torch.full((4,), -1, dtype=torch.int32, device=DEVICE)
    choose(ours, random_logits(3), [sequence(SamplingParams(presence_penalty=1.0))] * 1 + rows)
    ours.prepare(rows)
    ours.sample(logits.to(DEVICE), out)
    ours.send()
    expected = Sampler(VOCAB).sample(logits[:2, :VOCAB].float(), rows)
    assert_same(ours.collect(), expected)
    assert out.tolist() == [token.token_id for token in expected] + logits[2:, :VOCAB].argmax(-1).tolist()


def test_a_step_launches_what_its_rows_need() -> None:
    ours = sampler()
    greedy, drawn = sequence(SamplingParams(temperature=0.0)), sequence(SamplingParams())
    filtered, reported = sequence(SamplingParams(top_p=0.5)), sequence(SamplingParams(top_k=1, logprobs=2))
    for rows, needs in (
        ([greedy], Needs()),
        ([greedy, drawn], Needs(random=True)),
        ([greedy, filtered], Needs(random=True, filter=True)),
        ([reported], Needs(report=True)),
        ([sequence(SamplingParams(temperature=0.0, min_tokens=1))], Needs(adjust=True)),
    ):
        ours.prepare(rows)
        assert ours.needs == needs


def test_without_needs_nothing_of_an_earlier_step_is_read() -> None:
    """A graph that has chosen the likeliest tokens before `prepare` has neither counted nor forced any."""
    ours, out = sampler(), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    logits = torch.full((1, VOCAB), -9.0)
    logits[0, 5], logits[0, 6] = 4.0, 2.5
    asks = sequence(SamplingParams(temperature=0.0, frequency_penalty=1.0))
    asks.append(choose(ours, logits, [asks])[0].token_id)
    for _ in range(3):
        ours.sample(logits.to(DEVICE), out, Needs())
    assert out.tolist() == [5]
    assert choose(ours, logits, [asks])[0].token_id == 5


def test_more_rows_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="7 rows are more than max_rows=6"):
        sampler().prepare([sequence(SamplingParams())] * 7)


def test_memory_is_known_beforehand() -> None:
    ours = sampler()
    scratch = sum(getattr(ours._scratch, name).nbytes for name in ours._scratch.__slots__)
    assert scratch == scratch_bytes(6, VOCAB, SMALL)
    assert GpuSampler.max_bytes(VOCAB, 6, SMALL) > scratch + ours._table.buffer.nbytes


def near(logits: torch.Tensor, asks: Sequence, token_id: int) -> bool:
    """Whether a token is right, or holds a number within 1e-6 of the sequence's; without filters."""
    weights = (logits.double() / asks.params.temperature).softmax(-1).cumsum(-1)
    number = uniform([asks.sampling_seed], [asks.num_output_tokens])[0]
    begin = weights[token_id - 1].item() if token_id else 0.0
    return begin - 1e-6 <= number <= weights[token_id].item() + 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="takes minutes in the interpreter")
@pytest.mark.parametrize("vocab", [102_400, 151_937])
def test_whole_vocabularies_are_drawn_from_in_a_captured_graph(vocab: int) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = GpuSampler(vocab, 64, DEVICE)
    rows = [sequence(SamplingParams(), seed) for seed in range(32)]
    rows += [sequence(SamplingParams(top_k=50, top_p=0.9), seed) for seed in range(32)]
    logits, out = torch.empty(64, vocab, device=DEVICE), torch.zeros(64, dtype=torch.int64, device=DEVICE)
    ours.prepare(rows)
    ours.sample(logits.zero_(), out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.sample(logits, out)
    ours.send()
    ours.collect()
    for spread in (0.5, 3.0):
        fresh = torch.randn(64, vocab, generator=generator) * spread
        logits.copy_(fresh)
        ours.prepare(rows)
        graph.replay()
        ours.send()
        tokens = [token.token_id for token in ours.collect()]
        assert all(near(fresh[row], rows[row], tokens[row]) for row in range(32))
        expected = [token.token_id for token in Sampler(vocab).sample(fresh[32:].clone(), rows[32:])]
        agreeing = sum(our == their for our, their in zip(tokens[32:], expected, strict=True))
        assert agreeing >= 31, "of 50 tokens a boundary is within 1e-6 of the number in one draw of ten thousand"


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="takes minutes in the interpreter")
@pytest.mark.parametrize("params", [SamplingParams(top_p=0.9), SamplingParams(top_k=5000, min_p=1e-4)])
def test_large_nuclei_keep_their_definition(params: SamplingParams) -> None:
    vocab = 102_400
    logits = torch.randn(8, vocab, generator=torch.Generator().manual_seed(2))
    rows = [sequence(params, seed) for seed in range(8)]
    tokens = choose(GpuSampler(vocab, 8, DEVICE), logits, rows)
    for row, token in enumerate(tokens):
        weights, order = (logits[row].double() - logits[row].double().max()).exp().sort(descending=True, stable=True)
        kept = params.top_k or vocab
        running = weights[:kept].cumsum(-1)
        nucleus = int((running - weights[:kept] < params.top_p * running[-1]).sum()) if params.top_p < 1.0 else kept
        nucleus = int((weights[:nucleus] >= params.min_p).sum())
        shares = running[:nucleus] / running[nucleus - 1]
        place = int((order == token.token_id).nonzero())
        number = uniform([rows[row].sampling_seed], [0])[0]
        assert place < nucleus
        assert (shares[place - 1].item() if place else 0.0) - 2e-6 <= number <= shares[place].item() + 2e-6
