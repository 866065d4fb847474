"""The kernels of latent attention put together, against the layer that they stand for: outputs and cache alike."""

import itertools

import pytest
import torch
from torch import Tensor

from deepseek_engine.kernels.latent_prefill_plan import LatentChunks, plan_latent_prefill
from deepseek_engine.kernels.triton.latent_decode import decode_counters, latent_decode_attention
from deepseek_engine.kernels.triton.latent_prefill import latent_prefill_attention
from deepseek_engine.kernels.triton.latent_prepare import latent_prepare
from deepseek_engine.kernels.triton.latent_projections import absorb_query, expand_values
from deepseek_engine.layers.latent_attention import LOW_RANK_NORM_EPS, LatentAttention
from deepseek_engine.layers.rotary import rotary_table
from deepseek_engine.model_config import LatentConfig, RopeConfig
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.step_inputs import prepare_step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK_SIZE = 16
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative: float32 sums in another order; in bfloat16 every step between rounds (2^-9), here and there differently."""

HIDDEN = 48
NUM_BLOCKS = 12
ROPE = RopeConfig(dim=8, theta=1e4)


def layer(q_lora_rank: int | None, dtype: torch.dtype, generator: torch.Generator) -> LatentAttention:
    config = LatentConfig(
        num_attention_heads=3, q_lora_rank=q_lora_rank, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=12, softmax_scale=0.2,
    )  # fmt: skip
    attention = LatentAttention(config, HIDDEN, dtype)
    for parameter in attention.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return attention


def scheduled(chunks: list[tuple[int, int]]) -> list[ScheduledSequence]:
    """New tokens and context of each, on pages one behind the other."""
    blocks = itertools.count()
    batch: list[ScheduledSequence] = []
    for index, (num_new, context) in enumerate(chunks):
        sequence = Sequence("r", index, [0] * context, SamplingParams(), sampling_seed=0)
        sequence.num_computed_tokens = context - num_new
        sequence.block_table = [next(blocks) for _ in range(-(-context // BLOCK_SIZE))]
        batch.append(ScheduledSequence(sequence, num_new))
    return batch


def block_tables(batch: list[ScheduledSequence]) -> Tensor:
    tables = torch.zeros(len(batch), NUM_BLOCKS, dtype=torch.int32)
    for row, one in enumerate(batch):
        tables[row, : len(one.sequence.block_table)] = torch.tensor(one.sequence.block_table)
    return tables.to(DEVICE)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("q_lora_rank", [None, 16])
@pytest.mark.parametrize("chunks", [[(1, 7), (1, 20), (1, 33)], [(20, 20), (9, 30)]], ids=["decode", "prefill"])
@torch.no_grad()
def test_kernels_stand_for_the_layer(
    chunks: list[tuple[int, int]], q_lora_rank: int | None, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(5)
    attention = layer(q_lora_rank, dtype, generator)
    config = attention.config
    batch = scheduled(chunks)  # by length already, as the torch path lays rows out
    step = prepare_step(batch, BLOCK_SIZE, dtype)
    x = torch.randn(sum(new for new, _ in chunks), HIDDEN, generator=generator).to(dtype)
    cache = torch.randn(NUM_BLOCKS * BLOCK_SIZE, config.latent_dim, generator=generator).to(dtype)
    our_cache = cache.clone().to(DEVICE)
    table = rotary_table(ROPE, 64, torch.float32, DEVICE)

    expected = attention(x, table.cpu().to(dtype)[step.positions_T], (cache,), step.metadata)

    attention, x = attention.to(DEVICE), x.to(DEVICE)
    q, latent = attention.input.split(attention.input(x))
    if attention.q_norm is not None and attention.q_b is not None:
        q = attention.q_b(attention.q_norm(q))
    q = q.view(len(x), config.num_attention_heads, config.qk_head_dim)
    nope, rank = config.qk_nope_head_dim, config.kv_lora_rank
    positions, slots = step.positions_T.to(DEVICE), step.metadata.slot_mapping_T.to(DEVICE)
    inputs = (attention.kv_norm.weight, LOW_RANK_NORM_EPS, positions, slots, table, our_cache)
    context_lens = [context for _, context in chunks]
    if step.metadata.decode_groups:
        query = torch.full((*q.shape[:2], config.latent_dim), float("nan"), dtype=dtype, device=DEVICE)
        latent_prepare(q, latent, *inputs, query[..., rank:])
        key_b, value_b = attention.folded()
        absorb_query(q[..., :nope], key_b, query[..., :rank])
        lengths = torch.tensor(context_lens, dtype=torch.int32, device=DEVICE)
        attended = latent_decode_attention(
            query, our_cache, block_tables(batch), lengths, BLOCK_SIZE, config.softmax_scale, rank,
            decode_counters(DEVICE),
        )  # fmt: skip
        values = expand_values(attended, value_b)
    else:
        latent_prepare(q, latent, *inputs, q[..., nope:])
        first_rows = [0, *itertools.accumulate(new for new, _ in chunks)]
        of_chunks = LatentChunks(first_rows, context_lens, [], block_tables(batch), BLOCK_SIZE)
        plan = plan_latent_prefill(of_chunks, config, dtype)
        values = latent_prefill_attention(q, our_cache, attention.kv_b, plan, config, decode_counters(DEVICE))
    actual = attention.output(values).cpu()

    tolerance = TOLERANCES[dtype]
    assert (actual.double() - expected.double()).norm() < tolerance * expected.double().norm()
    assert (our_cache.cpu().double() - cache.double()).norm() < tolerance * cache.double().norm()
