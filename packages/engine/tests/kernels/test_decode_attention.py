"""Decode attention against its twin: lengths around blocks and shares, groups, head sizes, dtypes, INT8 caches."""

from dataclasses import replace

import pytest
import torch

from deepseek_engine.kernels.reference import decode_attention as reference
from deepseek_engine.kernels.triton.decode_attention import (
    AnyConfig,
    DecodeConfig,
    choose_config,
    decode_attention,
    decode_scratch,
)
from deepseek_engine.kernels.triton.decode_attention_pipelined import PipelinedConfig, is_pipelined
from deepseek_engine.kernels.triton.decode_attention_vectors import MAX_GROUP, VectorConfig, serves_vectors
from deepseek_engine.kernels.triton.decode_call import DecodeScratch
from deepseek_engine.testing.paged_attention import (
    DEVICE,
    IS_GPU,
    TOLERANCES,
    Draw,
    Heads,
    assert_same_cache,
    copy_of,
    error_of,
)

SEED_HEADS = Heads(16, 8, 128) if IS_GPU else Heads(4, 2, 32)
LENGTHS = [1, 0, 17, 640, 1025, 4000, 128, 129] if IS_GPU else [1, 0, 33, 200]
SMALL = DecodeConfig(num_splits=3, min_split=32, block_n=32)
VECTORS = VectorConfig(num_splits=3, min_split=32, tokens_a_slot=2, num_warps=4)
PIPELINED = PipelinedConfig(num_splits=3, min_split=32, block_n=32)


def poisoned(scratch: DecodeScratch) -> DecodeScratch:
    scratch.partials.fill_(float("nan"))
    scratch.totals.fill_(float("nan"))
    return scratch


@pytest.mark.parametrize(
    ("heads", "dtype", "block_size", "is_int8", "is_normed"),
    [
        (SEED_HEADS, torch.bfloat16, 16, False, False),
        (SEED_HEADS, torch.bfloat16, 16, True, False),
        (SEED_HEADS, torch.float32, 16, False, True),
        (SEED_HEADS, torch.float32, 256, True, False),
        (Heads(9, 3, 64) if IS_GPU else Heads(3, 1, 16), torch.float16, 16, False, True),
        (Heads(3, 3, 80) if IS_GPU else Heads(2, 2, 24), torch.bfloat16, 256, False, False),
        (Heads(40, 2, 96) if IS_GPU else Heads(17, 1, 24), torch.float32, 16, False, False),
    ],
)
@pytest.mark.parametrize(
    "config", [None, SMALL, PIPELINED, VECTORS], ids=["chosen", "many shares", "pipelined", "vectors"]
)
def test_a_new_token_attends_to_its_context_and_is_cached(
    heads: Heads,
    dtype: torch.dtype,
    block_size: int,
    is_int8: bool,
    is_normed: bool,
    config: AnyConfig | None,
) -> None:
    if isinstance(config, VectorConfig) and heads.queries // heads.keys > MAX_GROUP:
        pytest.skip("the kernel of vectors is for small groups")
    draw = Draw(1, heads, dtype)
    kv, tables = draw.paged(LENGTHS, block_size, is_int8=is_int8)
    qkv, lens = draw.qkv(len(LENGTHS)), torch.tensor(LENGTHS, dtype=torch.int32, device=DEVICE)
    norms, cos_sin, scale = draw.norms() if is_normed else None, draw.table(max(LENGTHS)), heads.dim**-0.5
    expected_kv = copy_of(kv)
    expected = reference.decode_attention(qkv, expected_kv, tables, lens, scale=scale, cos_sin=cos_sin, norms=norms)
    max_context = tables.shape[1] * block_size
    scratch = poisoned(decode_scratch(len(LENGTHS), heads.queries, kv, max_context, qkv.element_size()))
    if config is not None:
        scratch = poisoned(replace(scratch, partials=scratch.partials.repeat(4), totals=scratch.totals.repeat(4)))
    actual = decode_attention(qkv, kv, tables, lens, scratch, scale=scale, cos_sin=cos_sin, norms=norms, config=config)
    assert error_of(actual, expected) < TOLERANCES[dtype]
    assert (actual[LENGTHS.index(0)] == 0).all()
    assert_same_cache(kv, expected_kv, dtype)
    assert not scratch.counters.any(), "the next launch counts from 0"


def test_the_same_scratch_serves_step_after_step() -> None:
    draw = Draw(2, SEED_HEADS, torch.bfloat16)
    lens = torch.tensor([100, 30], dtype=torch.int32, device=DEVICE)
    kv, tables = draw.paged([110, 40], 16, is_int8=False)
    scratch = poisoned(decode_scratch(2, SEED_HEADS.queries, kv, 2048, 2))
    cos_sin = draw.table(110)
    for _ in range(3):
        qkv, twin = draw.qkv(2), copy_of(kv)
        expected = reference.decode_attention(qkv, twin, tables, lens, scale=0.2, cos_sin=cos_sin)
        actual = decode_attention(qkv, kv, tables, lens, scratch, scale=0.2, cos_sin=cos_sin, config=SMALL)
        assert error_of(actual, expected) < TOLERANCES[torch.bfloat16]
        lens += 1


@pytest.mark.parametrize("config", [None, PIPELINED, VECTORS], ids=["chosen", "pipelined", "vectors"])
@pytest.mark.parametrize("is_int8", [False, True])
def test_drafts_of_one_sequence_see_what_was_cached_before_them(is_int8: bool, config: AnyConfig | None) -> None:
    draw = Draw(3, SEED_HEADS, torch.bfloat16)
    kv, tables = draw.paged([70], 16, is_int8=is_int8)
    lens = torch.tensor([67, 68, 69, 70, 0], dtype=torch.int32, device=DEVICE)
    rows = tables.expand(5, -1)
    q = draw.normal(5, SEED_HEADS.queries * SEED_HEADS.dim)
    before = copy_of(kv)
    expected = reference.decode_attention(q, kv, rows, lens, scale=0.2, cos_sin=None)
    scratch = poisoned(decode_scratch(15, SEED_HEADS.queries, kv, rows.shape[1] * 16, 2))
    actual = decode_attention(q, kv, rows, lens, scratch, scale=0.2, cos_sin=None, config=config)
    assert error_of(actual, expected) < TOLERANCES[torch.bfloat16]
    assert_same_cache(kv, before, torch.bfloat16)


def test_the_kernel_is_chosen_by_rows_cache_and_group() -> None:
    plain, _ = Draw(6, SEED_HEADS, torch.bfloat16).paged([1], 16, is_int8=False)
    int8, _ = Draw(6, SEED_HEADS, torch.bfloat16).paged([1], 16, is_int8=True)
    assert [is_pipelined(batch, plain) for batch in (1, 32, 48, 256)] == [False, False, True, True]
    assert [is_pipelined(batch, int8) for batch in (1, 8, 9, 256)] == [False, False, True, True]
    group = SEED_HEADS.queries
    assert [serves_vectors(batch, group, plain, 2) for batch in (1, 47, 48)] == [False, False, True]
    assert [serves_vectors(batch, group, int8, 2) for batch in (1, 23, 24)] == [False, False, True]
    assert serves_vectors(1, group, plain, 4)
    assert not serves_vectors(256, 5 * SEED_HEADS.keys, plain, 2), "a group of five"


@pytest.mark.skipif(not IS_GPU, reason="needs a CUDA device")
def test_a_graph_serves_contexts_that_grow_after_its_capture() -> None:
    draw = Draw(4, SEED_HEADS, torch.bfloat16)
    kv, tables = draw.paged([3000, 3000, 3000], 16, is_int8=False)
    lens = torch.tensor([1, 1, 0], dtype=torch.int32, device=DEVICE)
    scratch = poisoned(decode_scratch(3, SEED_HEADS.queries, kv, tables.shape[1] * 16, 2))
    cos_sin, qkv = draw.table(3000), draw.qkv(3)

    def launch() -> torch.Tensor:
        return decode_attention(qkv, kv, tables, lens, scratch, scale=0.1, cos_sin=cos_sin)

    launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = launch()
    for contexts in ([5, 700, 0], [1025, 2999, 3000], [3000, 1, 40]):
        lens.copy_(torch.tensor(contexts))
        twin = copy_of(kv)
        expected = reference.decode_attention(qkv, twin, tables, lens, scale=0.1, cos_sin=cos_sin)
        actual.fill_(float("nan"))
        graph.replay()
        assert error_of(actual, expected) < TOLERANCES[torch.bfloat16]


def test_long_contexts_of_few_rows_are_shared_out_and_scratch_has_room() -> None:
    draw = Draw(5, Heads(16, 8, 128), torch.bfloat16)
    kv, _ = draw.paged([1], 16, is_int8=False)
    assert 120 < choose_config(1, kv, 8192, 2).num_splits * kv.num_heads <= 132, "one a multiprocessor"
    assert choose_config(256, kv, 8192, 2).num_splits == 2
    scratch = decode_scratch(8, 16, kv, 8192, 2)
    most = max(batch * choose_config(batch, kv, 8192, 2).num_splits for batch in range(1, 9))
    assert scratch.partials.numel() == most * 16 * 128
