"""Tokens' choices sorted by expert, on the device: what a product of one expert's rows after another's needs.

T tokens, K experts a token, E experts, P = T * K pairs; pair `t * K + k` is token t's choice k. Nothing here depends on
what lies on the device: buffers and grids have the size of the worst case, and the number of blocks in use stays there.
A program finds the place of one expert's pairs in one chunk of the pairs, so places do not depend on who comes first.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs

SINGLE_CHUNKS = (512, 2048, 4096)
"""Pairs that every program counts itself, so that one kernel is enough; few sizes, as each is compiled."""

MAX_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class AlignedPairs:
    """Pairs in blocks of one expert each.

    Attributes:
        pairs: int32 [blocks * block_size], in the order of experts, then of pairs; what fills up an expert's last block
            is P. Undefined behind the blocks in use.
        block_experts: int32 [blocks], each block's expert; undefined behind the blocks in use.
        num_blocks: int32 [1], how many blocks are in use.
        block_size: pairs a block.
    """

    pairs: Tensor
    block_experts: Tensor
    num_blocks: Tensor
    block_size: int

    @property
    def max_blocks(self) -> int:
        """Blocks there would be if every expert's last one were as good as empty."""
        return self.block_experts.shape[0]


def max_blocks_of(num_pairs: int, num_experts: int, block_size: int) -> int:
    """The most blocks that pairs can fill: an expert without pairs has none, any other may have one not full."""
    return (num_pairs + min(num_experts, num_pairs) * (block_size - 1)) // block_size


def align_pairs(expert_ids_TK: Tensor, num_experts: int, block_size: int) -> AlignedPairs:
    """Sort pairs by expert, each expert's filled up to whole blocks.

    Args:
        expert_ids_TK: int32 [T, K], contiguous, each in 0..E-1.
        num_experts: E.
        block_size: pairs a block, a power of two.

    Raises:
        ValueError: no pairs, or a block size that is no power of two.
    """
    num_pairs = expert_ids_TK.numel()
    if num_pairs == 0:
        raise ValueError("expert_ids_TK has no pairs: leave out the experts' product of an empty batch")
    if block_size < 1 or block_size & (block_size - 1):
        raise ValueError(f"block_size={block_size} is no power of two")
    device = expert_ids_TK.device
    max_blocks = max_blocks_of(num_pairs, num_experts, block_size)
    pairs = torch.empty(max_blocks * block_size, dtype=torch.int32, device=device)
    block_experts = torch.empty(max_blocks, dtype=torch.int32, device=device)
    num_blocks = torch.empty(1, dtype=torch.int32, device=device)
    dependent = has_dependent_launch(device)
    options = {"launch_pdl": True} if dependent else {}
    chunk = max(SINGLE_CHUNKS[-1] // 2, triton.next_power_of_2(triton.cdiv(num_pairs, MAX_CHUNKS)))
    if num_pairs <= SINGLE_CHUNKS[-1]:
        chunk = next(size for size in SINGLE_CHUNKS if size >= num_pairs)
    num_chunks = triton.cdiv(num_pairs, chunk)
    num_bins = max(triton.next_power_of_2(num_experts), 32)
    counts = expert_ids_TK  # not read if there is one chunk
    if num_chunks > 1:
        counts = torch.empty(num_chunks, num_bins, dtype=torch.int32, device=device)
        _count_kernel[(num_chunks,)](
            expert_ids_TK, counts, num_pairs, BINS=num_bins, CHUNK=chunk, IS_DEPENDENT=dependent, num_warps=4, **options
        )
    _place_kernel[(num_experts, num_chunks)](
        expert_ids_TK,
        counts,
        pairs,
        block_experts,
        num_blocks,
        num_pairs,
        block_size,
        BINS=num_bins,
        CHUNK=chunk,
        MAX_CHUNKS=1 if num_chunks == 1 else MAX_CHUNKS,
        IS_DEPENDENT=dependent,
        num_warps=4,
        **options,
    )
    return AlignedPairs(pairs, block_experts, num_blocks, block_size)


@triton.jit(do_not_specialize=["num_pairs"])
def _count_kernel(ids_ptr, counts_ptr, num_pairs, BINS: tl.constexpr, CHUNK: tl.constexpr, IS_DEPENDENT: tl.constexpr):
    """How often each expert was chosen in one chunk of the pairs."""
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    chunk = tl.program_id(0)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=0)
    counts = tl.histogram(ids, BINS, mask=pair < num_pairs)
    tl.store(counts_ptr + chunk * BINS + tl.arange(0, BINS), counts)


@triton.jit(do_not_specialize=["num_pairs", "block_size"])
def _place_kernel(
    ids_ptr,
    counts_ptr,
    pairs_ptr,
    block_experts_ptr,
    num_blocks_ptr,
    num_pairs,
    block_size,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Write where one expert's pairs of one chunk go; the first chunk's programs write the blocks' experts as well."""
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    expert = tl.program_id(0)
    chunk = tl.program_id(1)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1)
    bins = tl.arange(0, BINS)
    if MAX_CHUNKS == 1:
        totals = tl.histogram(tl.maximum(ids, 0), BINS, mask=pair < num_pairs)
        before = 0
    else:
        row = tl.arange(0, MAX_CHUNKS)
        offsets = row[:, None] * BINS + bins[None, :]
        counts = tl.load(counts_ptr + offsets, mask=(row < tl.num_programs(1))[:, None], other=0)
        totals = tl.sum(counts, 0)
        mine = tl.load(counts_ptr + row * BINS + expert, mask=row < chunk, other=0)
        before = tl.sum(mine, 0)
    blocks = (totals + (block_size - 1)) // block_size
    first_block = tl.sum(tl.where(bins < expert, blocks, 0), 0)
    count = tl.sum(tl.where(bins == expert, totals, 0), 0)
    is_mine = ids == expert
    rank = tl.cumsum(is_mine.to(tl.int32), 0) - 1
    tl.store(pairs_ptr + first_block * block_size + before + rank, pair, mask=is_mine)
    if chunk == 0:
        num_mine = (count + (block_size - 1)) // block_size
        for start in range(0, block_size, 128):
            fill = count + start + tl.arange(0, 128)
            tl.store(pairs_ptr + first_block * block_size + fill, num_pairs, mask=fill < num_mine * block_size)
        for start in range(0, num_mine, 128):
            block = start + tl.arange(0, 128)
            tl.store(block_experts_ptr + first_block + block, expert, mask=block < num_mine)
        if expert == 0:
            tl.store(num_blocks_ptr, tl.sum(blocks, 0))
