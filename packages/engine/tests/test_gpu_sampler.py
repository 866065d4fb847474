"""The GPU's sampler against the CPU's: the same tokens, in Triton's interpreter here and on the device where there is one.

Where a number lies within 1e-6 of the boundary between two tokens, float32 rounding may give the other one; the draws
here are the same every time, and on small vocabularies none of them lies there.
"""

import gc
from collections.abc import Sequence as Seq

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_engine import gpu_sampler as module
from deepseek_engine.gpu_sampler import GpuSampler
from deepseek_engine.kernels.reference import sampling as reference
from deepseek_engine.kernels.sampling_rows import Needs, SamplingConfig, scratch_bytes
from deepseek_engine.messages import ThinkingMarkers
from deepseek_engine.sampler import Sampler
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import SampledToken, Sequence
from deepseek_engine.thinking import ThinkingState

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 299
STOPS = frozenset({1, 2})
SMALL = SamplingConfig(block=64, group=4, candidates=8, capacity=32, tile=128)
"""So that a vocabulary of a few hundred has blocks, groups, and rows that candidates do not decide."""


def sampler(max_rows: int = 12, vocab: int = VOCAB) -> GpuSampler:
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
    st.tuples(params_strategy, st.integers(0, 2**63 - 1), st.integers(1, 40), st.booleans()), min_size=1, max_size=6
)


@pytest.mark.parametrize("use_reference", [False, True], ids=["kernels", "reference"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(batch=batches, logits_seed=st.integers(0, 10_000), spread=st.sampled_from((0.3, 3.0)))
def test_a_mixed_batch_gets_the_tokens_of_the_cpu_sampler(
    use_reference: bool, batch: list[tuple[SamplingParams, int, int, bool]], logits_seed: int, spread: float
) -> None:
    if use_reference and DEVICE.type == "cuda":
        pytest.skip("the plain twins are for the CPU")
    generator = torch.Generator().manual_seed(logits_seed)
    ours, theirs = sampler(), Sampler(VOCAB)
    if use_reference:
        ours._choose_tokens = reference.choose_tokens
    sequences = [
        Sequence("r", row, [(row + 11 * i) % VOCAB for i in range(length)], params, seed, stop_token_ids=STOPS)
        for row, (params, seed, length, _) in enumerate(batch)
    ]
    for _ in range(4):
        logits = torch.randn(len(batch), VOCAB, generator=generator) * spread
        for sequence, (*_, is_masked) in zip(sequences, batch, strict=True):
            allowed = torch.randperm(VOCAB, generator=generator)[:100].tolist()
            sequence.token_mask = mask_of(allowed) if is_masked else None
        expected = theirs.sample(logits.clone(), sequences)
        assert_same(choose(ours, logits, sequences), expected)
        for sequence, token in zip(sequences, expected, strict=True):
            sequence.append(token.token_id)
