"""Attention of single rows over the paged cache of latents, absorbed: all heads read one vector a token.

B rows, N heads, C kv_lora_rank, R qk_rope_head_dim, M blocks a sequence.

The kernels are in `latent_decode_kernels.py`.
Source: split keys as in Flash-Decoding (Dao et al., 2023); the absorbed form of DeepSeek-V2 (arXiv 2405.04434), 2.1.2.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from deepseek_engine.kernels.triton.latent_decode_kernels import latent_decode_kernel
from deepseek_engine.kernels.triton.launch import IS_INTERPRETED, has_dependent_launch, num_multiprocessors

MAX_SPLITS = 128
"""Of a row; what combining takes in at once."""

NUM_COUNTERS = 4096
"""Rows times blocks of heads of a launch that cuts rows into spans, at most."""

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class LatentDecodeConfig:
    """How the kernel cuts its work.

    Attributes:
        block_h: heads of a program, 16 at least.
        block_n: tokens of a tile.
        chunk_c: features multiplied at once; less than all of them only in float32, which has no matrix units.
        block_v: output features of a program.
        splits: spans of a row, at most.
        meet: whether the programs of a row wait for each other and combine together; otherwise the last one combines.
            All programs of the launch then have to run at once, so no two such launches may overlap.
    """

    block_h: int
    block_n: int
    chunk_c: int
    block_v: int
    splits: int
    meet: bool
    num_warps: int
    num_stages: int


def choose_config(
    num_rows: int, num_heads: int, value_dim: int, max_context: int, dtype: torch.dtype, num_processors: int
) -> LatentDecodeConfig:
    """Spans enough to give every multiprocessor a program, and no more, so that all of them run at once.

    Args:
        num_rows: B.
        num_heads: N.
        value_dim: C.
        max_context: tokens that the block tables have room for.
        dtype: of queries and cache.
        num_processors: of the device.
    """
    width = max(16, triton.next_power_of_2(value_dim))
    is_float32 = dtype is torch.float32
    block_h = 16 if num_heads <= 16 or is_float32 else 32  # 64 heads spill registers
    block_n = 32 if is_float32 else 64
    chunk_c = min(width, 64) if is_float32 else width
    block_v = chunk_c
    programs = num_rows * -(-num_heads // block_h) * (width // block_v)
    splits = max(1, min(num_processors // programs, -(-max_context // block_n), MAX_SPLITS))
    return LatentDecodeConfig(
        block_h=block_h,
        block_n=block_n,
        chunk_c=chunk_c,
        block_v=block_v,
        splits=splits,
        meet=not IS_INTERPRETED,  # programs that run one after another cannot wait for each other
        num_warps=4 if block_h == 16 else 8,
        num_stages=2,
    )


def decode_counters(device: torch.device) -> Tensor:
    """What the programs of a row meet at, int32 zeros: one such tensor for each stream that decodes."""
    return torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)


def latent_decode_attention(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    block_size: int,
    scale: float,
    value_dim: int,
    counters: Tensor,
    config: LatentDecodeConfig | None = None,
    *,
    first_token: int = 0,
) -> Tensor:
    """Each row attends to the first `context_len` tokens of its block table, or to those from `first_token` on.

    Args:
        q: [B, N, C + R], folded into the latents' space; features lie together.
        cache: a layer's latents, [slots, C + R]; the rows' own are in it.
        block_tables: int32 [B, M].
        context_lens: int32 [B], tokens with the row's own; 0 is padding, whose output is zeros.
        block_size: tokens a block.
        scale: of the scores.
        value_dim: C.
        counters: of `decode_counters`; zeros before and after. Launches that share them run one after another.
        config: instead of `choose_config`'s, for tuning.
        first_token: that is seen, below every context and 32 but for padding; in the first tile of any type.

    Returns:
        [B, N, C].

    Raises:
        ValueError: q and cache are not of one width and type.
    """
    num_rows, num_heads, width = q.shape
    if cache.shape[-1] != width or cache.dtype != q.dtype:
        raise ValueError(
            f"q is {q.dtype} of width {width}, the cache {cache.dtype} of width {cache.shape[-1]}: both hold C + R "
            "numbers of one type"
        )
    assert q.stride(2) == 1
    assert cache.stride(1) == 1
    assert block_tables.stride(1) == 1
    if config is None:
        processors, room = num_multiprocessors(q.device), block_tables.shape[1] * block_size
        config = choose_config(num_rows, num_heads, value_dim, room, q.dtype, processors)
    out = torch.empty(num_rows, num_heads, value_dim, dtype=q.dtype, device=q.device)
    head_blocks, block_c = -(-num_heads // config.block_h), max(16, triton.next_power_of_2(value_dim))
    v_parts = block_c // config.block_v
    is_split = config.splits > 1
    partial = lse = out
    if is_split:
        assert num_rows * head_blocks <= counters.numel()
        programs = num_rows * head_blocks * v_parts * config.splits
        assert not config.meet or programs <= num_multiprocessors(q.device), "programs that meet have to run at once"
        spans = (num_rows, head_blocks, config.splits, config.block_h)
        partial = torch.empty(*spans, block_c, dtype=torch.float32, device=q.device)
        lse = torch.empty(spans, dtype=torch.float32, device=q.device)
    is_dependent = has_dependent_launch(q.device)
    if num_rows:
        latent_decode_kernel[num_rows, head_blocks * v_parts, config.splits](
            q,
            cache,
            block_tables,
            context_lens,
            out,
            partial,
            lse,
            counters,
            scale * LOG2_E,
            q.stride(0),
            q.stride(1),
            cache.stride(0),
            block_tables.stride(0),
            config.splits,
            NUM_HEADS=num_heads,
            C=value_dim,
            R=width - value_dim,
            BLOCK_SIZE=block_size,
            BLOCK_C=block_c,
            BLOCK_R=max(16, triton.next_power_of_2(width - value_dim)),
            BLOCK_H=config.block_h,
            BLOCK_N=config.block_n,
            CHUNK_C=config.chunk_c,
            BLOCK_V=config.block_v,
            FIRST=first_token,
            IS_LARGE=cache.shape[0] * cache.stride(0) >= 1 << 31,
            IS_SPLIT=is_split,
            MEET=config.meet,
            IS_DEPENDENT=is_dependent,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            launch_pdl=is_dependent,
        )
    return out
