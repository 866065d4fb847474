"""Rotation and the cache write against their twin."""

import pytest
import torch

from deepseek_engine.kernels.reference import rope_and_cache as reference
from deepseek_engine.kernels.triton.rope_and_cache import rope_and_cache
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

NUM_TOKENS = 3000 if IS_GPU else 5


@pytest.mark.parametrize(
    ("heads", "dtype", "slot_dtype", "is_int8", "is_normed"),
    [
        (Heads(16, 8, 128), torch.bfloat16, torch.int64, False, False),
        (Heads(16, 8, 128), torch.bfloat16, torch.int32, True, True),
        (Heads(9, 3, 64), torch.float32, torch.int64, False, True),
        (Heads(6, 3, 80), torch.float16, torch.int32, True, False),
        (Heads(9, 1, 24), torch.float32, torch.int64, True, False),
    ],
)
def test_queries_are_rotated_and_keys_and_values_cached(
    heads: Heads, dtype: torch.dtype, slot_dtype: torch.dtype, is_int8: bool, is_normed: bool
) -> None:
    draw = Draw(11, heads, dtype)
    kv, tables = draw.paged([NUM_TOKENS + 9], 16, is_int8=is_int8)
    positions = torch.arange(7, 7 + NUM_TOKENS, dtype=torch.int32, device=DEVICE)
    slots = (tables[0].long()[positions // 16] * 16 + positions % 16).to(slot_dtype)
    slots[[1, -1]] = -1  # rows of padding
    qkv, cos_sin, norms = draw.qkv(NUM_TOKENS), draw.table(NUM_TOKENS + 9), draw.norms() if is_normed else None
    expected_kv = copy_of(kv)
    keys, expected_keys = torch.full((2, NUM_TOKENS, heads.keys, heads.dim), float("nan"), dtype=dtype, device=DEVICE)
    expected = reference.rope_and_cache(qkv, expected_kv, positions, slots, cos_sin, norms, expected_keys)
    actual = rope_and_cache(qkv, kv, positions, slots, cos_sin, norms, keys)
    torch.testing.assert_close(keys, expected_keys, rtol=TOLERANCES[dtype], atol=1e-3, equal_nan=True)
    assert error_of(actual, expected) < TOLERANCES[dtype]
    assert_same_cache(kv, expected_kv, dtype)


def test_a_head_of_zeros_is_quantised_to_zeros() -> None:
    draw = Draw(12, Heads(2, 1, 16), torch.float32)
    kv, tables = draw.paged([1], 16, is_int8=True)
    slots = tables[0, :1].long() * 16
    rope_and_cache(
        torch.zeros(1, 64, device=DEVICE), kv, torch.zeros(1, dtype=torch.int32, device=DEVICE), slots, draw.table(1)
    )
    assert kv.key_scales is not None
    assert kv.keys[slots].eq(0).all()
    assert kv.key_scales[slots].eq(0).all()
